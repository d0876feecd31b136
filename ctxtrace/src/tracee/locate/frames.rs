//! Determines how many functions keep a frame pointer, without a disassembler.
//!
//! For debuggers and exceptions, compilers describe for every function how its caller is found (`.eh_frame`, which is loaded and
//! stays when symbols are stripped). In a function with a frame pointer, the caller is found from `rbp` from the second
//! instruction on; in a function without it, from `rsp`. So a function without any rule that uses `rbp` keeps no frame pointer.
//! (The reverse is not always true: a function whose stack frame has no fixed size always uses `rbp`. There are few such
//! functions.)
//!
//! Go does not write this section, and keeps frame pointers in all functions that it compiles.

use gimli::{BaseAddresses, CallFrameInstruction, CieOrFde, EhFrame, LittleEndian, UnwindSection, X86_64};

use ctxtrace_format::executable::Frames;

/// The minimum size in bytes of a function that is counted. Smaller functions are stubs or call no other function.
const LEAST_BYTES: u64 = 32;

/// The maximum number of functions that are examined; the rest is not counted.
const MOST: u64 = 200_000;

/// Counts the functions in the bytes of `.eh_frame`. An invalid entry ends the count.
pub(super) fn count(section: &[u8], address: u64) -> Frames {
    let eh_frame = EhFrame::new(section, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(address);
    let mut entries = eh_frame.entries(&bases);
    let mut frames = Frames::default();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(function) = partial.parse(EhFrame::cie_from_offset) else {
            continue;
        };
        if function.len() < LEAST_BYTES {
            continue;
        }
        let mut instructions = function.instructions(&eh_frame, &bases);
        frames.functions += 1;
        while let Ok(Some(instruction)) = instructions.next() {
            if let CallFrameInstruction::DefCfaRegister { register } | CallFrameInstruction::DefCfa { register, .. } =
                instruction
                && register == X86_64::RBP
            {
                frames.with_pointer += 1;
                break;
            }
        }
        if frames.functions == MOST {
            break;
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a section with a CIE and, for each function, an FDE with these instructions.
    fn section(functions: &[(u32, &[u8])]) -> Vec<u8> {
        // The fields: length, id 0, version 1, augmentation "zR", alignments 1 and -8, return address register 16, and one byte
        // of augmentation data, which means absolute 4-byte pointers.
        let mut bytes = vec![20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x03];
        // At the entry of a function the caller is found from rsp + 8.
        bytes.extend([0x0c, 7, 8, 0, 0, 0, 0]);
        for (size, instructions) in functions {
            let length = 4 + 4 + 4 + 1 + instructions.len();
            let to_cie = bytes.len() + 4;
            bytes.extend((length as u32).to_le_bytes());
            bytes.extend((to_cie as u32).to_le_bytes());
            bytes.extend(0x1000_u32.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.push(0);
            bytes.extend(*instructions);
        }
        bytes.extend([0; 4]);
        bytes
    }

    /// The rules that compilers write for `push rbp; mov rbp, rsp`: after one byte rsp + 16, after three more bytes from rbp.
    const WITH: &[u8] = &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6];
    /// The rules that compilers write for `sub rsp, 40`.
    const WITHOUT: &[u8] = &[0x44, 0x0e, 48];

    #[test]
    fn functions_with_a_rule_by_rbp_keep_a_frame_pointer() {
        let bytes = section(&[(100, WITH), (100, WITHOUT), (64, WITH)]);
        assert_eq!(
            count(&bytes, 0x4000),
            Frames {
                functions: 3,
                with_pointer: 2
            }
        );
    }

    #[test]
    fn stubs_are_not_counted() {
        let bytes = section(&[(16, WITHOUT), (31, WITH)]);
        assert_eq!(count(&bytes, 0x4000), Frames::default());
    }

    #[test]
    fn damage_ends_the_counting() {
        let bytes = section(&[(100, WITH), (100, WITHOUT)]);
        for length in 0..bytes.len() {
            assert!(count(&bytes[..length], 0x4000).functions <= 2);
        }
        let noise: Vec<u8> = (0..4_096_u32).map(|i| (i * 31 % 251) as u8).collect();
        count(&noise, 0);
    }
}
