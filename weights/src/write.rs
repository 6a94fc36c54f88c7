//! Writes one safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes.
//!
//! The `safetensors` crate writes files too, but only from a whole map of views and without a hash;
//! here bytes are hashed while they go out, so that a checkpoint is never read again to be named.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use shoal_plan::checkpoint::CheckpointFile;

use crate::shelf::{Directory, Shelf};
use crate::{CheckpointError, StoredType};

/// Tensors start at multiples of this: the header is padded with spaces.
const ALIGNMENT: usize = 8;

/// A tensor on its way to a file.
#[derive(Clone, Debug)]
pub struct NamedTensor<'a> {
    pub name: &'a str,
    pub shape: Vec<usize>,
    pub dtype: StoredType,
    /// Row-major, little-endian; as long as shape and dtype say.
    pub bytes: Cow<'a, [u8]>,
}

/// One entry of a safetensors header.
#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    /// From the end of the header.
    data_offsets: [usize; 2],
}

/// What `transformers` wants to see before it opens a file.
#[derive(Serialize)]
struct Metadata {
    format: &'static str,
}

#[derive(Serialize)]
struct HeaderJson<'a> {
    __metadata__: Metadata,
    #[serde(flatten)]
    entries: BTreeMap<&'a str, Entry<'a>>,
}

/// Writes the tensors into `directory/file_name`, replacing what an earlier attempt left, and syncs
/// file and directory. The header comes first, so all tensors are held until it is known: pass
/// borrowed bytes where there are any.
pub fn write_file(
    directory: &Path,
    file_name: &str,
    tensors: &mut dyn Iterator<Item = NamedTensor<'_>>,
) -> Result<CheckpointFile, CheckpointError> {
    write_tensors(&mut Directory(directory), file_name, tensors)
}

/// The same onto any shelf.
pub fn write_tensors(
    shelf: &mut dyn Shelf,
    file_name: &str,
    tensors: &mut dyn Iterator<Item = NamedTensor<'_>>,
) -> Result<CheckpointFile, CheckpointError> {
    let mut tensors: Vec<_> = tensors.collect();
    // The widest first: then every tensor is aligned to its own elements.
    tensors.sort_by(|a, b| (b.dtype.size(), a.name).cmp(&(a.dtype.size(), b.name)));
    let placed = tensors.iter().map(|tensor| Placed {
        name: tensor.name,
        shape: &tensor.shape,
        dtype: tensor.dtype,
        bytes: tensor.bytes.len(),
    });
    let header = header_of(&placed.collect::<Vec<_>>(), &shelf.place(file_name))?;
    let length = (header.len() as u64).to_le_bytes();
    let parts = [length.as_slice(), &header].into_iter();
    shelf.put(file_name, &mut parts.chain(tensors.iter().map(|tensor| &*tensor.bytes)))
}

/// Writes, hashes and syncs a file that is no tensors.
pub fn write_bytes(
    directory: &Path,
    file_name: &str,
    bytes: &[u8],
) -> Result<CheckpointFile, CheckpointError> {
    Directory(directory).put(file_name, &mut [bytes].into_iter())
}

/// A tensor's place in a file: its bytes follow those of the tensor before it.
pub(crate) struct Placed<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub dtype: StoredType,
    pub bytes: usize,
}

/// The header of a file with these tensors, padded.
pub(crate) fn header_of(tensors: &[Placed<'_>], path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let unwritable = |tensor: &Placed<'_>, what: String| CheckpointError::Unwritable {
        path: path.to_path_buf(),
        name: tensor.name.to_string(),
        what,
    };
    let (mut entries, mut at) = (BTreeMap::new(), 0);
    for tensor in tensors {
        let want = tensor.shape.iter().product::<usize>() * tensor.dtype.size();
        if tensor.bytes != want {
            let what = format!("it has {} bytes, want {want}", tensor.bytes);
            return Err(unwritable(tensor, what));
        }
        if !crate::is_plain(tensor.name) {
            return Err(unwritable(tensor, "its name is not plain".into()));
        }
        let data_offsets = [at, at + want];
        let entry = Entry { dtype: tensor.dtype.name(), shape: tensor.shape, data_offsets };
        if entries.insert(tensor.name, entry).is_some() {
            return Err(unwritable(tensor, "it is there twice".into()));
        }
        at += want;
    }
    let json = HeaderJson { __metadata__: Metadata { format: "pt" }, entries };
    let mut header = serde_json::to_vec(&json).expect("a header is plain data");
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    Ok(header)
}
