//! Parquet: a document a row, its text in one column of strings. Rows without a value are left
//! out. Arrow is not needed for that: the crate's column readers are enough.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::{ConvertedType, Type};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;

use super::{Body, DOCUMENT_BYTES_MAX, Piece, Reading, Take, Tally};
use crate::error::{DataError, io_error};

/// Rows decoded at a time.
const ROWS: usize = 64;

pub(super) fn read(reading: &Reading<'_>, tally: &Tally, take: Take<'_>) -> Result<(), DataError> {
    let path = &reading.file.path;
    let wrong = |error: ParquetError| {
        DataError::content(path, "", format!("it is no readable Parquet file: {error}"))
    };
    let file = File::open(path).map_err(io_error("opening", path))?;
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(wrong)?;
    let metadata = reader.metadata();
    let column = text_column(metadata.file_metadata().schema_descr(), reading.field)
        .map_err(|what| DataError::content(path, "", what))?;
    let mut row = 0_u64;
    for group in 0..metadata.num_row_groups() {
        let group = guarded(|| reader.get_row_group(group)).map_err(wrong)?;
        let values = guarded(|| group.get_column_reader(column)).map_err(wrong)?;
        let mut values: ColumnReaderImpl<ByteArrayType> = get_typed_column_reader(values);
        loop {
            let (mut texts, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
            let read = || values.read_records(ROWS, Some(&mut levels), None, &mut texts);
            let (rows, _, _) = guarded(read).map_err(wrong)?;
            if rows == 0 {
                break;
            }
            for text in texts {
                if text.len() > DOCUMENT_BYTES_MAX {
                    let what = format!(
                        "a document of {} bytes, want at most {DOCUMENT_BYTES_MAX}",
                        text.len()
                    );
                    return Err(DataError::content(path, format!(" near row {row}"), what));
                }
                let piece = Piece::whole(Body::Text(text.data().to_vec()));
                if !text.is_empty() && take(piece)?.is_break() {
                    return count(path, tally);
                }
            }
            row += rows as u64;
        }
    }
    count(path, tally)
}

/// The crate meets some damaged files with a panic: it becomes an error, like the others.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    let damaged = |_| Err(ParquetError::General("its pages are damaged".into()));
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(damaged)
}

/// A Parquet file is read in any order: its bytes are counted in one go.
fn count(path: &Path, tally: &Tally) -> Result<(), DataError> {
    let mut pieces = File::open(path).map_err(io_error("opening", path))?;
    tally.add_all(&mut pieces).map_err(io_error("reading", path))
}

/// The index of the column, if it holds one string a row.
fn text_column(schema: &SchemaDescriptor, field: &str) -> Result<usize, String> {
    let columns = schema.columns();
    let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
    let Some(at) = names.iter().position(|name| name == field) else {
        let names = names.join(", ");
        return Err(format!(
            "no column `{field}`; the columns are: {names}; set the source's field"
        ));
    };
    let column = &columns[at];
    let is_text = column.physical_type() == Type::BYTE_ARRAY
        && !matches!(column.converted_type(), ConvertedType::DECIMAL | ConvertedType::BSON);
    if !is_text {
        return Err(format!("column `{field}` is {}, want strings", column.physical_type()));
    }
    if column.max_rep_level() > 0 {
        return Err(format!("column `{field}` holds lists, want one string a row"));
    }
    Ok(at)
}
