//! The memory of this process.

use std::fs;

#[path = "../../burn-lti-llama/src/bin/burn-lti/memory.rs"]
mod allocator;

/// Has the allocator treat tensors as it does in the command `burn-lti`. Call it first.
pub fn as_in_the_command() {
    allocator::set_up();
}

/// The most memory that this process had at once since it began, or since [`forget_peak`], in MiB.
/// `None` where the system does not say.
pub fn peak_mib() -> Option<f64> {
    peak_in(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Has the peak begin anew at what is held now, where the system can.
pub fn forget_peak() {
    // If it cannot, the peak is that of the whole process.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// `VmHWM:     2048 kB`
fn peak_in(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_what_the_kernel_says() {
        let status = "VmPeak:\t 9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(peak_in(status), Some(2.0));
        assert_eq!(peak_in("VmPeak:\t 9000 kB"), None);
    }
}
