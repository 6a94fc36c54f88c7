//! Every value is kept behind its BLAKE3: no database notices every flipped bit.

const HASH_BYTES: usize = 32;

/// The value behind its hash, which covers the key as well: a record cannot stand in another's place.
pub(super) fn sealed(key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = hash(key, value).to_vec();
    bytes.extend_from_slice(value);
    bytes
}

pub(super) fn unsealed<'a>(key: &str, bytes: &'a [u8]) -> Result<&'a [u8], &'static str> {
    let (found, value) = bytes.split_at_checked(HASH_BYTES).ok_or("it is too short")?;
    if hash(key, value) != *found {
        return Err("it does not fit its hash");
    }
    Ok(value)
}

fn hash(key: &str, value: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key.as_bytes());
    hasher.update(value);
    *hasher.finalize().as_bytes()
}
