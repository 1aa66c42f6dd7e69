//! bzImages to order.

/// Setup sectors beyond the first in a bzImage made here.
const SETUP_SECTS: u8 = 2;
/// Bytes between the start of the protected-mode code and the payload.
const PAYLOAD_OFFSET: u32 = 0x300;

/// A bzImage of boot protocol `protocol`, such as 0x20f, whose payload is `payload`.
///
/// # Panics
///
/// If the payload has 4 GiB or more, or the version does not fit the setup code.
pub fn bzimage(protocol: u16, version: &str, payload: &[u8]) -> Vec<u8> {
    let setup_len = (usize::from(SETUP_SECTS) + 1) * 512;
    let mut file = vec![0; setup_len + PAYLOAD_OFFSET as usize];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[SETUP_SECTS]);
    put(0x1fe, &0xaa55_u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &protocol.to_le_bytes());
    put(0x20e, &0x200_u16.to_le_bytes());
    put(0x248, &PAYLOAD_OFFSET.to_le_bytes());
    put(0x24c, &u32::try_from(payload.len()).expect("test payloads are small").to_le_bytes());
    put(0x400, version.as_bytes());
    file.extend_from_slice(payload);
    // What follows the payload in a real one: the code that decompresses it.
    file.extend_from_slice(&[0xcc; 64]);
    file
}

/// A stream with the size of what it decompresses to behind it, as Linux's build appends it.
///
/// # Panics
///
/// If the size does not fit 32 bits.
pub fn with_size(stream: &[u8], unpacked_len: usize) -> Vec<u8> {
    let size = u32::try_from(unpacked_len).expect("test kernels are small");
    [stream, &size.to_le_bytes()].concat()
}
