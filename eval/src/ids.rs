//! Tables of whole numbers from files: JSON's nested lists, or safetensors of I64 or I32.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::EvalError;

/// A file of ids is read whole; a billion bytes are far more than anybody compares by hand.
const BYTES_MAX: u64 = 1 << 30;

/// Numbers, [B, T]: at least one sequence of at least two tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) sequences: usize,
    pub(crate) tokens: usize,
    pub(crate) values: Vec<i64>,
}

/// What a file holds, as `transformers` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) input_ids: Table,
    pub(crate) labels: Option<Table>,
    pub(crate) attention_mask: Option<Table>,
}

/// The same in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    input_ids: Vec<Vec<i64>>,
    labels: Option<Vec<Vec<i64>>>,
    attention_mask: Option<Vec<Vec<i64>>>,
}

/// Reads a file: JSON if its name ends in `.json`, else safetensors.
pub(crate) fn read(path: &Path) -> Result<File, EvalError> {
    let wrong = |what: String| EvalError::Input { path: path.into(), at: String::new(), what };
    let bytes = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > BYTES_MAX {
        return Err(wrong(format!("{bytes} bytes, want at most {BYTES_MAX}")));
    }
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if is_json { of_json(path, &bytes) } else { of_safetensors(path, &bytes) }
}

fn of_json(path: &Path, bytes: &[u8]) -> Result<File, EvalError> {
    let wrong =
        |at: &str, what: String| EvalError::Input { path: path.into(), at: at.into(), what };
    let json: Json = serde_json::from_slice(bytes).map_err(|error| {
        let want = "want {\"input_ids\": [[1, 2, ...], ...], \"labels\": [[...], ...]}";
        wrong("", format!("{error}; {want}"))
    })?;
    let table = |name: &str, rows: Vec<Vec<i64>>| {
        let tokens = rows.first().map_or(0, Vec::len);
        if let Some(at) = rows.iter().position(|row| row.len() != tokens) {
            let got = rows[at].len();
            let what = format!("{got} numbers, the first list has {tokens}: want as many in each");
            return Err(wrong(&format!(": {name}[{at}]"), what));
        }
        sized(path, name, (rows.len(), tokens), rows.concat())
    };
    Ok(File {
        input_ids: table("input_ids", json.input_ids)?,
        labels: json.labels.map(|rows| table("labels", rows)).transpose()?,
        attention_mask: json
            .attention_mask
            .map(|rows| table("attention_mask", rows))
            .transpose()?,
    })
}

fn of_safetensors(path: &Path, bytes: &[u8]) -> Result<File, EvalError> {
    let wrong =
        |at: &str, what: String| EvalError::Input { path: path.into(), at: at.into(), what };
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|error| wrong("", format!("no readable safetensors file: {error}")))?;
    let table = |name: &str| {
        let Ok(tensor) = tensors.tensor(name) else { return Ok(None) };
        let at = format!(": {name}");
        let &[sequences, tokens] = tensor.shape() else {
            return Err(wrong(&at, format!("shape {:?}, want [B, T]", tensor.shape())));
        };
        let data = tensor.data();
        let values: Vec<i64> = if tensor.dtype() == Dtype::I64 {
            data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
        } else if tensor.dtype() == Dtype::I32 {
            data.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect()
        } else {
            return Err(wrong(&at, format!("dtype {:?}, want I64 or I32", tensor.dtype())));
        };
        sized(path, name, (sequences, tokens), values).map(Some)
    };
    let missing = || wrong("", "no tensor `input_ids`: want one of shape [B, T]".into());
    Ok(File {
        input_ids: table("input_ids")?.ok_or_else(missing)?,
        labels: table("labels")?,
        attention_mask: table("attention_mask")?,
    })
}

fn sized(
    path: &Path,
    name: &str,
    (sequences, tokens): (usize, usize),
    values: Vec<i64>,
) -> Result<Table, EvalError> {
    if sequences == 0 || tokens < 2 {
        let at = format!(": {name}");
        let what =
            format!("[{sequences}, {tokens}]: want a sequence or more of two tokens or more");
        return Err(EvalError::Input { path: path.into(), at, what });
    }
    Ok(Table { sequences, tokens, values })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> Result<File, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        read(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), name))
    }

    fn safetensors(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<File, String> {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let bytes = safetensors::serialize([("input_ids", view)], None).unwrap();
        file("ids.safetensors", &bytes)
    }

    #[test]
    fn every_form_of_the_same_numbers_is_the_same_table() {
        let json = file("ids.json", br#"{"input_ids": [[1, 2, 3], [4, 5, 6]]}"#).unwrap();
        let long: Vec<u8> = (1..=6_i64).flat_map(i64::to_le_bytes).collect();
        let short: Vec<u8> = (1..=6_i32).flat_map(i32::to_le_bytes).collect();
        assert_eq!(safetensors(Dtype::I64, &[2, 3], &long).unwrap(), json);
        assert_eq!(safetensors(Dtype::I32, &[2, 3], &short).unwrap(), json);
        assert_eq!(json.input_ids.values, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_no_table_of_whole_numbers_is_refused() {
        let check = |found: Result<File, String>, wanted: &str| {
            let error = found.unwrap_err();
            assert!(error.contains(wanted), "want {wanted}: {error}");
        };
        let floats = [0_u8; 24];
        check(safetensors(Dtype::F32, &[2, 3], &floats), "input_ids: dtype F32, want I64 or I32");
        check(safetensors(Dtype::I64, &[3], &floats), "shape [3], want [B, T]");
        check(safetensors(Dtype::I64, &[3, 1], &floats), "[3, 1]: want a sequence or more");
        check(safetensors(Dtype::I64, &[0, 3], &[]), "[0, 3]: want");
        check(file("a.safetensors", b"nonsense"), "no readable safetensors file");
        check(file("a.json", b"[1, 2]"), "want {\"input_ids\"");
        check(file("a.json", br#"{"input_ids": [[1, 2.5]]}"#), "line 1");
        check(
            file("a.json", br#"{"input_ids": [[1, 2], [3]]}"#),
            "input_ids[1]: 1 numbers, the first",
        );
        check(file("a.json", br#"{"input_ids": []}"#), "[0, 0]: want");
        check(file("a.json", br#"{"input_ids": [[1, 2]], "label": [[1, 2]]}"#), "unknown field");
        check(file("a.json", br#"{"labels": [[1, 2]]}"#), "missing field `input_ids`");
        check(read(Path::new("nowhere.json")).map_err(|e| e.to_string()), "No such file");
    }
}
