//! A capture whose blocks have valid compression and checksums and any contents. It tests the code behind the checksums.
//!
//! The input is a list of blocks. Each consists of its kind (one byte), its length (four bytes, little-endian), and its contents.
#![no_main]

fn packed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(bytes, 1).expect("the data is compressed");
    let mut block = b"BLCK".to_vec();
    for number in [kind, packed.len() as u32, bytes.len() as u32, crc32fast::hash(&packed)] {
        block.extend(number.to_le_bytes());
    }
    block.extend(crc32fast::hash(&block).to_le_bytes());
    block.extend(packed);
    block
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut capture = b"ctxtrace\0\0\0\0\x02\0\0\0".to_vec();
    let mut rest = input;
    while let Some((head, after)) = rest.split_at_checked(5) {
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (contents, next) = after.split_at(length.min(after.len()));
        capture.extend(packed(u32::from(head[0]), contents));
        rest = next;
    }
    ctxtrace_fuzz::report(&capture);
});
