//! Reads and empties the kernel's hash tables, many elements with one system call (`BPF_MAP_LOOKUP_BATCH` and its kin, since
//! Linux 5.6; kernel: `kernel/bpf/hashtab.c`, `__htab_map_lookup_and_delete_batch()`).
//!
//! The kernel goes from bucket to bucket and copies each under its lock. So an element that is there from the first call to the
//! last is seen exactly once, whatever is put into the table and deleted from it meanwhile.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use bytemuck::Pod;

/// Bytes of the values that one system call copies, about; more only where a single bucket holds more.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Commands of `bpf(2)`, and what the kernel takes for them (kernel: `include/uapi/linux/bpf.h`).
const LOOKUP_BATCH: libc::c_int = 24;
const LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
const DELETE_BATCH: libc::c_int = 27;

/// `union bpf_attr`, the part named `batch`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    /// Address of the cursor that the last call has left; 0 to begin.
    in_batch: u64,
    /// Address of the cursor that this call leaves.
    out_batch: u64,
    keys: u64,
    values: u64,
    /// Elements there is room for; then those that were copied or deleted.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `visit` for each element of a hash table. The elements stay where they are.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn read<K: Pod, V: Pod>(table: BorrowedFd<'_>, visit: impl FnMut(K, &V)) -> io::Result<()> {
    copy(LOOKUP_BATCH, table, visit)
}

/// Deletes each element of a hash table and calls `visit` for it. What a program adds to an element at that moment may be lost,
/// so no program may change an element of this table once it has been made.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn take<K: Pod, V: Pod>(table: BorrowedFd<'_>, visit: impl FnMut(K, &V)) -> io::Result<()> {
    copy(LOOKUP_AND_DELETE_BATCH, table, visit)
}

fn copy<K: Pod, V: Pod>(command: libc::c_int, table: BorrowedFd<'_>, mut visit: impl FnMut(K, &V)) -> io::Result<()> {
    let mut room = (BYTES_AT_ONCE / size_of::<V>().max(1)).clamp(64, 16_384);
    let (mut keys, mut values) = (vec![K::zeroed(); room], vec![V::zeroed(); room]);
    let mut cursor: Option<u32> = None;
    loop {
        let mut next = 0_u32;
        let mut attributes = Attributes {
            in_batch: cursor.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: table.as_raw_fd() as u32,
            ..Attributes::default()
        };
        // SAFETY: both buffers have room for `count` keys and values of this table's sizes, which any bytes are good for, and
        // the cursors, 4 bytes each for a hash table, live to the end of the call.
        let outcome = unsafe { bpf(command, &mut attributes) };
        let count = attributes.count as usize;
        let is_last = match outcome {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // One bucket holds more than there is room for, and nothing was copied.
                Some(libc::ENOSPC) => {
                    room *= 2;
                    keys.resize(room, K::zeroed());
                    values.resize(room, V::zeroed());
                    continue;
                }
                _ => return Err(error),
            },
        };
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(*key, value);
        }
        if is_last {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// Deletes these elements of a hash table; one that is not there is passed over.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn delete<K: Pod>(table: BorrowedFd<'_>, mut keys: &[K]) -> io::Result<()> {
    while !keys.is_empty() {
        let mut attributes = Attributes {
            keys: keys.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: table.as_raw_fd() as u32,
            ..Attributes::default()
        };
        // SAFETY: there are `count` keys of this table's size, which the kernel only reads.
        let outcome = unsafe { bpf(DELETE_BATCH, &mut attributes) };
        let deleted = attributes.count as usize;
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                keys = keys.get(deleted + 1..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `bpf(2)` with one of the commands of batches.
///
/// # Safety
///
/// What the attributes point to must be as the command wants it, up to the end of the call.
unsafe fn bpf(command: libc::c_int, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the size is that of the structure; what the structure points to is the caller's promise.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
