//! What is not done on some kernels although they would take it, because it has done harm there.
//!
//! All other differences between kernels are asked for (BTF, loading a program to see), not looked up by version. This cannot be
//! asked: a machine that stops gives no answer.

use nix::sys::utsname::uname;

use crate::error::{Error, Result};

/// Whether events may be told on this kernel.
///
/// A guest with Debian's Linux 6.1 has stopped twice in the test of events, both CPUs in the kernel, once beside much other work and
/// once without any, and has come through it once; QEMU emulated the processor. Linux 5.10 and 6.12 have not stopped, nor has 6.18
/// outside of an emulator.
pub(super) fn timeline() -> Result<()> {
    let release = uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
    if may_stop(&release) {
        return Err(Error::TimelineOnKernel { release });
    }
    Ok(())
}

/// Between those that are tested.
fn may_stop(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => ((5, 11)..(6, 12)).contains(&(major, minor)),
        // Whatever that is, it is not one of them.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_between_the_tested_ones_may_stop() {
        for release in ["6.1.0-50-cloud-amd64", "5.15.0", "6.11.9-arch1", "5.11"] {
            assert!(may_stop(release), "{release}");
        }
        for release in ["5.10.0-32-cloud-amd64", "6.12.9", "6.18.44", "7.0.0-rc1", "odd", ""] {
            assert!(!may_stop(release), "{release}");
        }
    }
}
