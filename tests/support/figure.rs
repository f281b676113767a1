//! The figures of the documents in the crate's documentation, which has no files beside it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The link definition whose target is the drawing itself, as in `src/guide/figure.md`.
pub fn definition(label: &str, svg: &[u8]) -> String {
    format!("[{label}]: data:image/svg+xml;base64,{}\n", base64(svg))
}

/// Encodes bytes as base64 (RFC 4648).
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
