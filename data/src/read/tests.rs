//! Every format, written here and read back; and hostile files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;
use crate::files::look_at;
use crate::shards::write::ShardWriter;

const VOCABULARY: Vocabulary = Vocabulary { size: 1000, id: 0 };

fn pieces_of(path: &Path, field: &str, end_token: Option<u32>) -> Result<Vec<Piece>, DataError> {
    let file = look_at(path)?;
    let reading =
        Reading { file: &file, field, vocabulary: VOCABULARY, end_token, limit: u64::MAX };
    let tally = Tally::default();
    let mut pieces = Vec::new();
    read(&reading, &tally, &mut |piece| {
        pieces.push(piece);
        Ok(ControlFlow::Continue(()))
    })?;
    assert_eq!(tally.bytes(), file.bytes, "every byte is counted once");
    assert_eq!(tally.hash(), blake3::hash(&fs::read(path).unwrap()));
    Ok(pieces)
}

fn texts(path: &Path, field: &str) -> Vec<String> {
    let text = |piece: Piece| match piece.body {
        Body::Text(text) => String::from_utf8(text).unwrap(),
        Body::Tokens(tokens) => panic!("{tokens:?} for text"),
    };
    pieces_of(path, field, None).unwrap().into_iter().map(text).collect()
}

fn tokens(path: &Path, end_token: Option<u32>) -> Vec<(Vec<u32>, bool)> {
    let tokens = |piece: Piece| match piece.body {
        Body::Tokens(tokens) => (tokens, piece.is_last),
        Body::Text(_) => panic!("text for tokens"),
    };
    pieces_of(path, "text", end_token).unwrap().into_iter().map(tokens).collect()
}

#[track_caller]
fn refused(path: &Path, field: &str, wants: &[&str]) {
    let error = pieces_of(path, field, None).unwrap_err().to_string();
    assert!(wants.iter().all(|want| error.contains(want)), "{error}");
}

fn file(scratch: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// A column `meta.text` of strings, one a row; `None` is null.
fn parquet_file(path: &Path, rows: &[Option<&str>], compression: Compression) {
    let schema = "message rows { optional group meta { optional binary text (UTF8); \
                  required int64 number; repeated binary tags (UTF8); } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(100) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> =
            rows.iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let levels: Vec<i16> = rows.iter().map(|text| 1 + i16::from(text.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let (numbers, levels) = (vec![7; rows.len()], vec![1; rows.len()]);
        column.typed::<Int64Type>().write_batch(&numbers, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let (empty, zeros) = (vec![1; rows.len()], vec![0; rows.len()]);
        column.typed::<ByteArrayType>().write_batch(&[], Some(&empty), Some(&zeros)).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn json_lines_are_documents_in_every_packing() {
    let scratch = tempfile::tempdir().unwrap();
    let lines = "\u{feff}{\"id\": 1, \"text\": \"one\\n\\u00e9\"}\r\n\n{\"text\": \"\"}\n\
                 {\"text\": null}\n  {\"text\": \"two\", \"meta\": {\"text\": [1]}}";
    for (name, bytes) in [
        ("a.jsonl", lines.as_bytes().to_vec()),
        ("a.ndjson.gz", [gz(&lines.as_bytes()[..30]), gz(&lines.as_bytes()[30..])].concat()),
        ("a.jsonl.zst", [zst(&lines.as_bytes()[..30]), zst(&lines.as_bytes()[30..])].concat()),
    ] {
        assert_eq!(texts(&file(&scratch, name, &bytes), "text"), ["one\né", "two"], "{name}");
    }
    let nested = file(&scratch, "b.jsonl", br#"{"a": {"b": "deep", "text": 3}, "text": 1}"#);
    assert_eq!(texts(&nested, "a.b"), ["deep"]);
}

#[test]
fn a_wrong_json_line_is_named_with_what_is_there() {
    let scratch = tempfile::tempdir().unwrap();
    let check = |line: &str, field: &str, wants: &[&str]| {
        let lines = format!("{{\"text\": \"fine\", \"a\": {{\"b\": \"fine\"}}}}\n{line}\n");
        let path = file(&scratch, "x.jsonl", lines.as_bytes());
        refused(&path, field, &[&["x.jsonl:2: "], wants].concat());
    };
    check(r#"{"body": "x", "id": 3}"#, "text", &["no key `text`; the keys are: body, id", "field"]);
    check(r#"{"text": 3}"#, "text", &["integer `3`", "expected the text, a string"]);
    check(r#"{"text": ["x"]}"#, "text", &["sequence", "expected the text, a string"]);
    check(r#"{"text": {"x": 1}}"#, "text", &["map", "expected the text, a string"]);
    check(r#"{"a": "x"}"#, "a.b", &["a string", "an object with the key `b`"]);
    check(r#"{"a": null}"#, "a.b", &["null", "an object with the key `b`"]);
    check(r#"{"text": "x", "text": "y"}"#, "text", &["the key `text` is there twice"]);
    check(r#"["x"]"#, "text", &["sequence", "an object with the key `text`"]);
    check(r#"{"text": "x"} {"#, "text", &["trailing characters at column 15"]);
    check(r#"{"text": "x"#, "text", &["EOF while parsing a string"]);
    check("{\"text\": \"\u{1}\"}", "text", &["control character"]);
    let deep = format!("{{\"x\": {}", "[".repeat(100_000));
    check(&deep, "text", &["EOF while parsing a list"]);
    let path = file(&scratch, "y.jsonl", b"{\"text\": \"\xFF\"}");
    refused(&path, "text", &["y.jsonl:1: ", "invalid unicode"]);
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_the_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let mut packed = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    packed.write_all(b"{\"text\": \"").unwrap();
    for _ in 0..110 {
        packed.write_all(&vec![b'a'; 1_000_000]).unwrap();
    }
    let path = file(&scratch, "x.jsonl.zst", &packed.finish().unwrap());
    refused(&path, "text", &["x.jsonl.zst:1: a line of more than 100000000 bytes"]);
}

#[test]
fn plain_text_is_one_document_and_an_empty_file_none() {
    let scratch = tempfile::tempdir().unwrap();
    assert_eq!(texts(&file(&scratch, "a.txt", b"one\ntwo"), "text"), ["one\ntwo"]);
    assert_eq!(texts(&file(&scratch, "a.rs.gz", &gz(b"fn")), "text"), ["fn"]);
    for name in ["e.txt", "e.jsonl", "e.bin"] {
        assert_eq!(pieces_of(&file(&scratch, name, b""), "text", None).unwrap(), [], "{name}");
    }
    let long = "zwölf Boxkämpfer\n".repeat(600_000);
    for (name, bytes) in [("l.txt", long.clone().into_bytes()), ("l.gz", gz(long.as_bytes()))] {
        let pieces = pieces_of(&file(&scratch, name, &bytes), "text", None).unwrap();
        assert_eq!(pieces.len(), 3);
        let flags: Vec<_> = pieces.iter().map(|piece| (piece.is_first, piece.is_last)).collect();
        assert_eq!(flags, [(true, false), (false, false), (false, true)]);
        assert!(pieces.iter().all(|piece| piece.hash == Some(blake3::hash(long.as_bytes()))));
        let text = |piece: &Piece| match &piece.body {
            Body::Text(text) => String::from_utf8(text.clone()).unwrap(),
            Body::Tokens(_) => panic!("tokens"),
        };
        assert!(pieces[..2].iter().all(|piece| text(piece).ends_with('\n')));
        assert!(pieces.iter().map(text).collect::<String>() == long);
    }
}

#[test]
fn packed_files_that_are_cut_or_damaged_say_so() {
    let scratch = tempfile::tempdir().unwrap();
    let text: Vec<u8> = (0..200_000_u32).flat_map(|at| at.wrapping_mul(at).to_le_bytes()).collect();
    for (name, packed) in [("a.txt.gz", gz(&text)), ("a.txt.zst", zst(&text))] {
        for keep in [5, packed.len() / 2, packed.len() - 3] {
            let path = file(&scratch, name, &packed[..keep]);
            refused(&path, "text", &[name, "damaged or ends early", "fetch the file again"]);
        }
        let path = file(&scratch, name, b"not packed at all");
        refused(&path, "text", &[name, "damaged or ends early"]);
    }
}

#[test]
fn parquet_rows_are_documents_in_every_compression() {
    let scratch = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..250).map(|at| format!("row {at} ümlaut")).collect();
    let mut all: Vec<Option<&str>> = rows.iter().map(|row| Some(row.as_str())).collect();
    all[5] = None;
    all[6] = Some("");
    let want: Vec<&str> = all.iter().flatten().copied().filter(|row| !row.is_empty()).collect();
    let path = scratch.path().join("a.parquet");
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(::parquet::basic::ZstdLevel::default()),
        Compression::GZIP(::parquet::basic::GzipLevel::default()),
    ] {
        parquet_file(&path, &all, compression);
        assert_eq!(texts(&path, "meta.text"), want);
    }
    refused(
        &path,
        "text",
        &["no column `text`; the columns are: meta.text, meta.number, meta.tags"],
    );
    refused(&path, "meta.number", &["column `meta.number` is INT64, want strings"]);
    refused(&path, "meta.tags", &["holds lists"]);
    let packed = file(&scratch, "b.parquet.gz", &gz(&fs::read(&path).unwrap()));
    refused(&packed, "meta.text", &["unpack it first"]);
}

#[test]
fn no_damage_to_a_parquet_file_brings_us_down() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("a.parquet");
    let rows: Vec<String> = (0..120).map(|at| format!("row {at}")).collect();
    let rows: Vec<Option<&str>> = rows.iter().map(|row| Some(row.as_str())).collect();
    parquet_file(&path, &rows, Compression::SNAPPY);
    let good = fs::read(&path).unwrap();
    refused(
        &file(&scratch, "b.parquet", b""),
        "meta.text",
        &["b.parquet: ", "no readable Parquet"],
    );
    let mut refusals = 0;
    for keep in (0..good.len()).step_by(37) {
        let cut = file(&scratch, "c.parquet", &good[..keep]);
        refused(&cut, "meta.text", &["c.parquet"]);
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        // Not every byte matters; those that do end in an error and not in a panic.
        refusals += usize::from(
            pieces_of(&file(&scratch, "d.parquet", &bytes), "meta.text", None).is_err(),
        );
    }
    assert!(refusals > good.len() / 10, "{refusals} of {}", good.len());
}

/// A NumPy file of version 1.0 with this description.
fn npy(dict: &str, payload: &[u8]) -> Vec<u8> {
    let dict = format!("{dict:<117}\n");
    let length = (dict.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, dict.as_bytes(), payload].concat()
}

#[test]
fn ready_made_ids_are_cut_at_the_end_token() {
    let scratch = tempfile::tempdir().unwrap();
    let ids = [5_u16, 6, 9, 9, 7, 8];
    let narrow: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let wide: Vec<u8> = ids.iter().flat_map(|id| u32::from(*id).to_le_bytes()).collect();
    let mut llm_c = vec![0; 1024];
    llm_c[..4].copy_from_slice(&20_240_520_u32.to_le_bytes());
    llm_c.extend_from_slice(&narrow);
    let describe = |kind: &str, shape: &str| {
        format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}")
    };
    let mut files = vec![
        file(&scratch, "a.bin", &narrow),
        file(&scratch, "llm-c.bin", &llm_c),
        file(&scratch, "a.bin.zst", &zst(&narrow)),
        file(&scratch, "a.npy", &npy(&describe("<u2", "6,"), &narrow)),
        file(&scratch, "b.npy", &npy(&describe("<u4", "2, 3"), &wide)),
        file(&scratch, "c.npy.gz", &gz(&npy(&describe("<i4", "6,"), &wide))),
    ];
    let mut shard = ShardWriter::new(scratch.path(), "own".into(), VOCABULARY);
    shard.write(&ids.map(u32::from)).unwrap();
    files.push(scratch.path().join(&shard.finish().unwrap()[0].name));
    for path in files {
        let want = [(vec![5, 6], true), (vec![7, 8], false)];
        assert_eq!(tokens(&path, Some(9)), want, "{}", path.display());
        assert_eq!(tokens(&path, None), [(ids.map(u32::from).to_vec(), false)]);
    }
    // Without ends for long, stretches are documents.
    let many = file(&scratch, "many.bin", &1_u16.to_le_bytes().repeat(300_000));
    let lengths: Vec<usize> = tokens(&many, Some(9)).iter().map(|(ids, _)| ids.len()).collect();
    assert_eq!(lengths, [65_536, 65_536, 65_536, 65_536, 37_856]);
}

#[test]
fn wrong_ids_are_refused_with_their_place() {
    let scratch = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &[u8], wants: &[&str]| {
        refused(&file(&scratch, name, bytes), "text", &[&[name], wants].concat());
    };
    check("a.bin", &[1, 0, 2], &["ends within an id of 2 bytes"]);
    check("a.bin", &[1, 0, 0xE8, 3], &["token 1: id 1000, want ids below 1000"]);
    let describe =
        |kind: &str| format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': (1,), }}");
    check("a.npy", &npy(&describe("<i4"), &(-3_i32).to_le_bytes()), &["token 0: id -3"]);
    check("a.npy", &npy(&describe("<f4"), &[0; 4]), &["\"<f4\", want <u2, <u4 or <i4"]);
    check("a.npy", &npy(&describe("<u2"), &[0; 4]), &["2 tokens do not match its header"]);
    check("a.npy", &npy("{}", &[]), &["its numbers are"]);
    check("a.npy", b"\x93NUMPY\x01\x00\xFF\xFF", &["header is cut"]);
    check("a.npy", b"\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF", &["says it is 4294967295 bytes long"]);
    check("a.npy", b"text", &["header is cut"]);
    check("a.tokens", b"text", &["it has no header"]);
    let mut shard = ShardWriter::new(scratch.path(), "own".into(), VOCABULARY);
    shard.write(&[1, 2, 3]).unwrap();
    let path = scratch.path().join(&shard.finish().unwrap()[0].name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[64] = 9;
    check("b.tokens", &bytes, &["is damaged"]);
    check("b.tokens", &bytes[..66], &["is damaged"]);
    let foreign = Vocabulary { size: 1000, id: 77 };
    let mut shard = ShardWriter::new(scratch.path(), "foreign".into(), foreign);
    shard.write(&[1, 2, 3]).unwrap();
    let path = scratch.path().join(&shard.finish().unwrap()[0].name);
    refused(&path, "text", &["another tokenizer (1000 tokens, id 0000004d; want 1000 tokens"]);
}
