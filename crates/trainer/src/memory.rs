//! Memory of this process as the system counts it.

/// Resident memory now; `None` where the system does not tell (other than Linux).
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// Highest resident memory since the process began; `None` where the system does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// A field of `/proc/self/status` (proc_pid_status(5)), which counts in kB of 1024 bytes.
fn status_bytes(field: &str) -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    parse(&status, field)
}

fn parse(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_units_of_1024_bytes() {
        let status = "Name:\tx\nVmHWM:\t   12345 kB\nVmRSS:\t    678 kB\n";
        assert_eq!(parse(status, "VmHWM:"), Some(12345 * 1024));
        assert_eq!(parse(status, "VmRSS:"), Some(678 * 1024));
        assert_eq!(parse(status, "VmSwap:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn touched_memory_is_counted() {
        let before = resident_bytes().unwrap();
        let block = std::hint::black_box(vec![1u8; 256 << 20]); // else the optimiser leaves it out
        let now = resident_bytes().unwrap();
        assert!(now >= before + (192 << 20), "{before} {now}");
        assert!(peak_resident_bytes().unwrap() >= now);
        drop(block);
    }
}
