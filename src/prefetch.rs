//! Memory before it is needed: hints to the processor, which otherwise waits for each line that is in no cache. They
//! change no value.
//!
//! A few hundred tensors lie apart from each other, and the model's weights, which every step reads, leave nothing of
//! ours in the caches.

/// Bytes that processors fetch at once.
const LINE: usize = 64;

/// `bytes` will be read.
#[inline(always)]
pub fn read(bytes: &[u8]) {
    lines(bytes.as_ptr(), bytes.len(), Intent::Read);
}

/// What stands `distance` bytes behind `block` will be read, as many bytes as it has; beyond the end of a page
/// processors do not look by themselves.
#[inline(always)]
pub fn read_beyond(block: &[u8], distance: usize) {
    lines(block.as_ptr().wrapping_add(distance), block.len(), Intent::Read);
}

/// `room` will be written. Without this the first atomic operation behind the writes waits until the memory has come.
#[inline(always)]
pub fn write(room: &mut [u8]) {
    lines(room.as_ptr(), room.len(), Intent::Write);
}

#[derive(Clone, Copy)]
enum Intent {
    Read,
    Write,
}

#[inline(always)]
#[allow(unsafe_code, reason = "instructions without a safe form")]
fn lines(from: *const u8, len: usize, intent: Intent) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..len).step_by(LINE) {
        let at = from.wrapping_add(at);
        // SAFETY: a hint changes nothing that the program sees, and an address that is not mapped is no fault. A
        // processor without the second one takes it for no operation.
        unsafe {
            match intent {
                Intent::Read => std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast()),
                Intent::Write => {
                    std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, len, intent, LINE);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_hint_changes_nothing() {
        let mut bytes: Vec<u8> = (0..200).collect();
        super::read(&bytes);
        // Where nothing is mapped either.
        super::read_beyond(&bytes, usize::MAX / 2);
        super::write(bytes.get_mut(1..).unwrap_or_default());
        super::write(&mut []);
        assert!(bytes.iter().zip(0..200).all(|(a, b)| *a == b));
    }
}
