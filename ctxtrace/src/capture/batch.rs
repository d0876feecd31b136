//! Reads and empties the kernel's hash tables, many elements with one system call (`BPF_MAP_LOOKUP_BATCH` and the other batch
//! commands, since Linux 5.6; kernel: `kernel/bpf/hashtab.c`, `__htab_map_lookup_and_delete_batch()`).
//!
//! The kernel visits the buckets in order and copies each one under its lock. An element that is in the table from the first call
//! to the last is therefore seen exactly once, whatever else is inserted and deleted meanwhile.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use bytemuck::Pod;

/// Approximate number of bytes of values that one system call copies. It is exceeded only if a single bucket holds more.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Commands of `bpf(2)` and their numbers (kernel: `include/uapi/linux/bpf.h`).
const LOOKUP_BATCH: libc::c_int = 24;
const LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
const DELETE_BATCH: libc::c_int = 27;

/// The `batch` part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    /// Address of the cursor that the previous call wrote; 0 for the first call.
    in_batch: u64,
    /// Address to which this call writes its cursor.
    out_batch: u64,
    keys: u64,
    values: u64,
    /// Before the call the capacity in elements; after it the number of elements copied or deleted.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `visit` for each element of a hash table. The elements stay in the table.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn read<K: Pod, V: Pod>(table: BorrowedFd<'_>, visit: impl FnMut(K, &V)) -> io::Result<()> {
    copy(LOOKUP_BATCH, table, visit)
}

/// Deletes each element of a hash table and calls `visit` for it. An addition that a BPF program makes to an element at that
/// moment may be lost, so BPF programs must never change an element of this table after creating it.
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
        // SAFETY: both buffers have room for `count` keys and values of this table's sizes. Both types are `Pod`, so any bytes
        // are valid. The cursors are 4 bytes each for a hash table and live until the end of the call.
        let outcome = unsafe { bpf(command, &mut attributes) };
        let count = attributes.count as usize;
        let is_last = match outcome {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // One bucket holds more elements than the buffers; nothing was copied.
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

/// Deletes these elements of a hash table, skipping keys that are not in it.
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
        // SAFETY: `keys` holds `count` keys of this table's size, and the kernel only reads them.
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

/// Calls `bpf(2)` with one of the batch commands.
///
/// # Safety
///
/// The buffers that the attributes point to must be valid for this command until the end of the call.
unsafe fn bpf(command: libc::c_int, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the size is that of the structure. The caller guarantees that the addresses in it are valid.
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
