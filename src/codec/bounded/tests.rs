//! `bounded`: what it promises beyond its bounds: size, and the meaning of its bytes.

use super::super::tests::Random;
use super::super::{Codec, DType, Encoder, Params, decode};

fn encode(row_len: usize, values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let params = Params { codec: Codec::Bounded, error_bound: 1e-3 };
    let mut body = Vec::new();
    Encoder::default().encode(&params, DType::F32, row_len, &data, &mut body);
    body
}

#[test]
fn a_gaussian_shrinks_threefold_from_the_first_row_on() {
    // Rate-distortion theory: 9.97 bits a value at least, 3.21 times.
    let mut random = Random::new(7);
    for (row_len, rows, least) in
        [(576, 1, 3.0), (576, 100, 3.05), (192, 100, 2.98), (1536, 100, 3.06), (4096, 20, 3.06)]
    {
        let values: Vec<f32> = (0..row_len * rows).map(|_| random.normal() as f32 * 3.7).collect();
        let ratio = values.len() as f64 * 4.0 / encode(row_len, &values).len() as f64;
        assert!(ratio >= least && ratio < 3.21, "{rows} rows of {row_len}: {ratio}");
    }
}

#[test]
fn zeros_cost_two_bytes_a_row() {
    assert_eq!(encode(5000, &[0.0; 10_000]), [1, 0, 0, 0, 0]);
    assert_eq!(encode(5000, &[-0.0; 10_000]).len(), 5);
}

#[test]
fn a_block_without_numbers_does_not_touch_its_neighbours() {
    let mut random = Random::new(8);
    let mut values: Vec<f32> = (0..576).map(|_| random.normal() as f32).collect();
    let clean = encode(576, &values).len();
    values[70] = f32::NAN;
    let body = encode(576, &values);
    assert!(body.len() < clean + 200, "{} and {clean}", body.len());
    let mut back = Vec::new();
    decode(Codec::Bounded, DType::F32, 576, 576, &body, &mut back).unwrap();
    assert_eq!(back[70 * 4..71 * 4], f32::NAN.to_le_bytes());
}

/// Reads a body by the letter of docs/CODECS.md, bit by bit, knowing nothing of the code above.
fn read_slowly(row_len: usize, n_values: usize, body: &[u8]) -> Vec<f32> {
    fn take<'a>(n: usize, at: &mut &'a [u8]) -> &'a [u8] {
        let (taken, rest) = at.split_at(n);
        *at = rest;
        taken
    }
    let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let mut at = body;
    assert_eq!(take(1, &mut at), [1]);
    let mut out = Vec::new();
    while out.len() < n_values {
        let n = row_len.min(n_values - out.len());
        let step = half(take(2, &mut at));
        if step == 0 {
            out.extend(vec![0.0; n]);
            continue;
        }
        let raw =
            |b: &[u8]| -> Vec<f32> { b.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect() };
        if step == 0xFFFF {
            out.extend(raw(take(n * 4, &mut at)));
            continue;
        }
        let row_step = f32::from_bits(u32::from(step) << 16);
        let sizes: Vec<usize> = (0..n).step_by(64).map(|i| (n - i).min(64)).collect();
        let kinds = take(sizes.len().div_ceil(2), &mut at);
        let kinds: Vec<u8> =
            (0..sizes.len()).map(|i| if i % 2 == 0 { kinds[i / 2] & 15 } else { kinds[i / 2] >> 4 }).collect();
        let mut steps = Vec::new();
        for kind in &kinds {
            steps.push(match kind {
                14 => {
                    let own = half(take(2, &mut at));
                    let step = if own & 0xFFF == 0 { row_step } else { f32::from_bits(u32::from(own & 0xFFF) << 19) };
                    (step, usize::from(own >> 12))
                }
                k => (row_step, usize::from(k.wrapping_sub(1))),
            });
        }
        // Blocks as they are, or the low bits and signs of coded ones.
        let mut blocks: Vec<Vec<f32>> = Vec::new();
        let mut coded: Vec<Vec<u32>> = Vec::new();
        for ((kind, n), (_, low)) in kinds.iter().zip(&sizes).zip(&steps) {
            let (mut values, mut numbers) = (vec![0.0; *n], vec![0_u32; *n]);
            match kind {
                0 => {}
                15 => values = raw(take(n * 4, &mut at)),
                _ => {
                    let width = low + 1;
                    // Values of a word, at most: bit-reversed places of 8, 4 or 2.
                    let in_word: &[usize] = match n {
                        33.. => &[0, 32, 16, 48, 8, 40, 24, 56],
                        17.. => &[0, 16, 8, 24],
                        _ => &[0, 8],
                    };
                    let mut begin = 0;
                    while begin < width {
                        let part = (width - begin).min(8);
                        for word in 0..8 {
                            let bytes = take((in_word.len() * part).div_ceil(8), &mut at);
                            for (place, i) in in_word.iter().enumerate().filter(|(_, i)| **i + word < *n) {
                                for bit in 0..part {
                                    let from = place * part + bit;
                                    numbers[i + word] |=
                                        u32::from((bytes[from / 8] >> (from % 8)) & 1) << (begin + bit);
                                }
                            }
                        }
                        begin += part;
                    }
                }
            }
            blocks.push(values);
            coded.push(numbers);
        }
        // Runs, values in the order of their bit-reversed places.
        let order: Vec<usize> = (0..64)
            .map(|i: u8| usize::from(i % 16).reverse_bits() >> (usize::BITS - 6) | usize::from(i / 16))
            .collect();
        let mut place = 0;
        let mut escaped = Vec::new();
        let is_coded = |k: &u8| (1..=14).contains(k);
        let mut runs: Vec<Vec<u32>> = Vec::new();
        for (b, (kind, n)) in kinds.iter().zip(&sizes).enumerate() {
            let mut run = vec![0; *n];
            for i in order.iter().filter(|i| is_coded(kind) && **i < *n) {
                while at[place / 8] >> (place % 8) & 1 == 0 {
                    run[*i] += 1;
                    place += 1;
                }
                place += 1;
            }
            escaped.extend((0..*n).filter(|i| run[*i] == 15).map(|i| (b, i)));
            runs.push(run);
        }
        take(place.div_ceil(8), &mut at);
        for (b, i) in escaped {
            let mut shift = 0;
            loop {
                let byte = take(1, &mut at)[0];
                runs[b][i] += u32::from(byte & 127) << shift;
                shift += 7;
                if byte < 128 {
                    break;
                }
            }
        }
        for (b, kind) in kinds.iter().enumerate() {
            let (step, low) = steps[b];
            for i in 0..sizes[b] {
                if is_coded(kind) {
                    let size = runs[b][i] << low | coded[b][i] >> 1;
                    let value = size as f32 * step;
                    blocks[b][i] = if coded[b][i] & 1 == 1 { -value } else { value };
                }
            }
            out.extend(&blocks[b]);
        }
    }
    assert!(at.is_empty());
    out
}

#[test]
fn bytes_mean_what_the_documentation_says() {
    let mut random = Random::new(9);
    for kind in 0..super::super::tests::KINDS {
        for row_len in [16, 63, 64, 65, 200, 576] {
            let values: Vec<f32> = (0..4).flat_map(|_| super::super::tests::row(kind, row_len, &mut random)).collect();
            let body = encode(row_len, &values);
            let mut ours = Vec::new();
            decode(Codec::Bounded, DType::F32, row_len, values.len(), &body, &mut ours).unwrap();
            let theirs: Vec<u8> =
                read_slowly(row_len, values.len(), &body).iter().flat_map(|v| v.to_le_bytes()).collect();
            assert!(ours == theirs, "kind {kind}, rows of {row_len}");
        }
    }
}
