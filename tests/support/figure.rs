//! The figure of the README in the crate's documentation, which has no files beside it.

/// The link definition whose target is the drawing itself, as in `src/guide/figure.md`.
pub fn definition(svg: &[u8]) -> String {
    format!("[recovery]: data:image/svg+xml;base64,{}\n", base64(svg))
}

/// Encodes bytes as base64 (RFC 4648).
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = |group: &[u8]| {
        let bits = [0, 1, 2].map(|at| u32::from(group.get(at).copied().unwrap_or(0)));
        let bits = bits[0] << 16 | bits[1] << 8 | bits[2];
        let letter = |at| char::from(LETTERS[(bits >> (18 - 6 * at)) as usize & 63]);
        [0, 1, 2, 3].map(|at| if at > group.len() { '=' } else { letter(at) })
    };
    bytes.chunks(3).flat_map(letters).collect()
}
