//! Byte shuffle: plane `k` holds the `k`-th byte of every value, least significant first, so that bytes of one
//! meaning lie together.

/// Writes the planes of `data` (values of `size` bytes) over `out`.
pub(super) fn shuffle(size: usize, data: &[u8], out: &mut Vec<u8>) {
    if size == 1 || !data.len().is_multiple_of(size) {
        out.clear();
        out.extend_from_slice(data);
        return;
    }
    // Every byte is written below; what was there before needs no clearing.
    out.resize(data.len(), 0);
    match size {
        2 => planes::<2>(data, out),
        4 => planes::<4>(data, out),
        _ => planes::<8>(data, out),
    }
}

fn planes<const SIZE: usize>(data: &[u8], out: &mut [u8]) {
    let n = data.len() / SIZE;
    let (values, _) = data.as_chunks::<SIZE>();
    for (k, plane) in out.chunks_exact_mut(n.max(1)).enumerate().take(SIZE) {
        for (byte, value) in plane.iter_mut().zip(values) {
            *byte = value[k];
        }
    }
}

/// Appends the values whose planes `data` holds to `out`.
pub(super) fn unshuffle(size: usize, data: &[u8], out: &mut Vec<u8>) {
    if size == 1 || !data.len().is_multiple_of(size) {
        out.extend_from_slice(data);
        return;
    }
    let start = out.len();
    out.resize(start + data.len(), 0);
    let out = out.get_mut(start..).unwrap_or_default();
    match size {
        2 => values::<2>(data, out),
        4 => values::<4>(data, out),
        _ => values::<8>(data, out),
    }
}

fn values<const SIZE: usize>(data: &[u8], out: &mut [u8]) {
    let n = data.len() / SIZE;
    let (values, _) = out.as_chunks_mut::<SIZE>();
    for (k, plane) in data.chunks_exact(n.max(1)).enumerate().take(SIZE) {
        for (byte, value) in plane.iter().zip(&mut *values) {
            value[k] = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_least_significant_first() {
        let mut out = vec![9; 3];
        shuffle(4, &[1, 2, 3, 4, 11, 12, 13, 14], &mut out);
        assert_eq!(out, [1, 11, 2, 12, 3, 13, 4, 14]);
    }

    #[test]
    fn unshuffle_is_the_inverse_for_every_size() {
        let data: Vec<u8> = (0..240_u32).map(|i| (i * 7 % 251) as u8).collect();
        for size in [1, 2, 4, 8] {
            for n in [0, 1, 3, 30] {
                let data = &data[..n * size];
                let (mut planes, mut back) = (Vec::new(), vec![77]);
                shuffle(size, data, &mut planes);
                unshuffle(size, &planes, &mut back);
                assert_eq!(&back[1..], data, "{size} {n}");
            }
        }
    }
}
