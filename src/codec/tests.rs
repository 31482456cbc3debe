//! Every codec on hostile values: bounds on every row and block, reported errors, exact bits, and no trust in
//! what is decoded.

use super::*;

/// A small generator: the tests must be the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    pub(super) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Kinds of hostile rows.
pub(super) const KINDS: usize = 16;

/// A row of one kind.
pub(super) fn row(kind: usize, n: usize, r: &mut Random) -> Vec<f32> {
    let scale = 10_f64.powf(r.uniform() * 8.0 - 4.0);
    let mut row: Vec<f32> = (0..n)
        .map(|i| {
            let x = r.normal();
            match kind {
                0 => x * scale,
                // Heavy tails: a ratio of normals, without variance.
                1 => x / (r.normal().abs() + 1e-6) * scale,
                2 => x.powi(7) * scale,
                // Massive outliers.
                3 if r.below(200) == 0 => x * scale * 1e4,
                3 => x * scale,
                // Blocks of very different size.
                4 => x * scale * 10_f64.powi((i / 64 % 7) as i32 * 4 - 12),
                // Mostly zeros.
                5 if r.below(20) != 0 => [0.0, -0.0][r.below(2)],
                5 => x * scale,
                6 => x * 1e-36,
                7 => x * 1e-41,
                8 => x * 1e37,
                // Any exponent.
                9 => x * 10_f64.powf(r.uniform() * 76.0 - 38.0),
                10 => scale,
                11 => [1.0, -1.0][r.below(2)] * scale,
                // Half a step is the worst to round.
                12 => (r.below(1023) as f64 - 511.0 + 0.5) * scale,
                13 => r.uniform() * scale + scale * 1e3,
                _ => x * scale,
            }
        })
        .map(|x| x as f32)
        .collect();
    if kind == 14 {
        // A few values that are none.
        for _ in 0..1 + n / 100 {
            let at = r.below(n);
            row[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xFFA1_2345), 1e-42][r.below(5)];
        }
    }
    if kind == 15 {
        row.iter_mut().for_each(|x| *x = f32::from_bits(r.bits() as u32));
    }
    row
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Greatest row and block errors by definition, in f64; asserts that what is not finite is kept bit by bit.
fn measure(row_len: usize, values: &[f32], decoded: &[f32], exact_specials: bool) -> (f64, f64) {
    let (mut worst_row, mut worst_block) = (0.0_f64, 0.0_f64);
    assert_eq!(values.len(), decoded.len());
    for (row, back) in values.chunks(row_len).zip(decoded.chunks(row_len)) {
        let (mut squares, mut missed) = (0.0, 0.0);
        for (block, back) in row.chunks(64).zip(back.chunks(64)) {
            if block.iter().any(|v| !v.is_finite()) {
                if exact_specials {
                    assert!(block.iter().zip(back).all(|(a, b)| a.to_bits() == b.to_bits()), "{block:?} {back:?}");
                }
                continue;
            }
            let most = block.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs())));
            for (a, b) in block.iter().zip(back) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                assert!(b.is_finite());
                squares += a * a;
                missed += (a - b) * (a - b);
                if most > 0.0 {
                    worst_block = worst_block.max((a - b).abs() / most);
                }
                assert!(most > 0.0 || b == 0.0, "{a} became {b}");
            }
        }
        if missed > 0.0 {
            worst_row = worst_row.max((missed / squares).sqrt());
        }
    }
    (worst_row, worst_block)
}

/// All instruction sets that can be compared here.
fn isas() -> Vec<simd::Isa> {
    let mut all = vec![simd::Isa::Baseline];
    if simd::Isa::detect() != simd::Isa::Baseline {
        #[cfg(target_arch = "x86_64")]
        all.push(simd::Isa::Avx2);
        all.push(simd::Isa::detect());
    }
    all
}

/// Encodes with every instruction set, which must give the same, and decodes with every one; the body and
/// the decoded values.
fn round_trip(
    encoder: &mut Encoder,
    params: &Params,
    dtype: DType,
    row_len: usize,
    data: &[u8],
) -> (Encoded, Vec<u8>, Vec<u8>) {
    let mut bodies: Vec<(Encoded, Vec<u8>)> = Vec::new();
    for isa in isas() {
        let mut body = vec![0xEE; 3];
        let done = encoder.encode_with(isa, params, dtype, row_len, data, &mut body);
        assert_eq!(body[..3], [0xEE; 3], "what was there before");
        bodies.push((done, body.split_off(3)));
    }
    assert!(
        bodies.iter().all(|b| *b == bodies[0]),
        "every processor gives the same bytes: {params:?} {dtype:?} {row_len}"
    );
    let (done, body) = bodies.swap_remove(0);
    let n = data.len() / dtype.size();
    let mut decoded: Vec<Vec<u8>> = Vec::new();
    for isa in isas() {
        let mut out = vec![0xDD; 5];
        decode_with(isa, done.codec, dtype, row_len, n, &body, &mut out).unwrap();
        assert_eq!(out[..5], [0xDD; 5], "what was there before");
        decoded.push(out.split_off(5));
    }
    assert!(decoded.iter().all(|d| *d == decoded[0]));
    (done, body, decoded.swap_remove(0))
}

/// Row lengths with whole blocks, parts of blocks and neither.
const ROW_LENGTHS: [usize; 12] = [1, 7, 16, 17, 63, 64, 65, 100, 128, 192, 576, 1537];

#[test]
fn both_bounds_hold_on_every_row_and_block_of_hostile_values() {
    let mut encoder = Encoder::default();
    let mut random = Random::new(1);
    for bound in [1e-3, 1e-2, 0.3, 1e-4, 5e-6, 3.3e-3] {
        let params = Params { codec: Codec::Bounded, error_bound: bound };
        for row_len in ROW_LENGTHS {
            for kind in 0..KINDS {
                let values: Vec<f32> = (0..5).flat_map(|_| row(kind, row_len, &mut random)).collect();
                let (done, body, back) = round_trip(&mut encoder, &params, DType::F32, row_len, &bytes(&values));
                let what = format!("kind {kind}, rows of {row_len}, bound {bound}: {done:?}");
                if row_len < 16 {
                    assert_eq!((done.codec, &back), (Codec::Zstd, &bytes(&values)), "{what}");
                    continue;
                }
                assert_eq!(done.codec, Codec::Bounded);
                assert!(
                    body.len() <= values.len() * 4 + 16 + 5 * (2 + row_len.div_ceil(64) * 3),
                    "{what}: {}",
                    body.len()
                );
                let (row, block) = measure(row_len, &values, &floats(&back), true);
                assert!(row <= f64::from(bound) && block <= f64::from(bound), "{what}: {row} {block}");
                assert!((row - f64::from(done.row_l2)).abs() <= 1e-5 * row, "{what}: {row}");
                assert!((block - f64::from(done.block_max)).abs() <= 1e-6 * block, "{what}: {block}");
            }
        }
    }
}

#[test]
fn the_block_bound_holds_on_every_block_of_hostile_values_with_fast() {
    let mut encoder = Encoder::default();
    let mut random = Random::new(2);
    for bound in [1e-3, 1e-2, 0.3, 1e-4, 5e-6, 3.3e-3] {
        let params = Params { codec: Codec::Fast, error_bound: bound };
        for row_len in ROW_LENGTHS {
            for kind in 0..KINDS {
                let values: Vec<f32> = (0..5).flat_map(|_| row(kind, row_len, &mut random)).collect();
                let (done, _, back) = round_trip(&mut encoder, &params, DType::F32, row_len, &bytes(&values));
                let what = format!("kind {kind}, rows of {row_len}, bound {bound}: {done:?}");
                if row_len < 16 {
                    assert_eq!((done.codec, &back), (Codec::Zstd, &bytes(&values)), "{what}");
                    continue;
                }
                assert_eq!(done.codec, Codec::Fast);
                let (row, block) = measure(row_len, &values, &floats(&back), true);
                assert!(block <= f64::from(bound), "{what}: {block}");
                assert!((row - f64::from(done.row_l2)).abs() <= 1e-5 * row, "{what}: {row}");
                assert!((block - f64::from(done.block_max)).abs() <= 1e-6 * block, "{what}: {block}");
            }
        }
    }
}

#[test]
fn narrow_types_round_saturate_and_report() {
    let mut encoder = Encoder::default();
    let mut random = Random::new(3);
    for codec in [Codec::F16, Codec::Bf16] {
        let params = Params { codec, ..Params::default() };
        for row_len in ROW_LENGTHS {
            for kind in 0..KINDS {
                let values: Vec<f32> = (0..5).flat_map(|_| row(kind, row_len, &mut random)).collect();
                let (done, _, back) = round_trip(&mut encoder, &params, DType::F32, row_len, &bytes(&values));
                let back = floats(&back);
                let mut saturated = 0;
                for (a, b) in values.iter().zip(&back) {
                    let nearest = match codec {
                        Codec::F16 => half::f16::from_f32(*a).to_f32(),
                        _ => half::bf16::from_f32(*a).to_f32(),
                    };
                    let most = if codec == Codec::F16 { 65_504.0 } else { f32::from_bits(0x7F7F_0000) };
                    let expected = if a.is_finite() { nearest.clamp(-most, most) } else { nearest };
                    saturated += u64::from(a.is_finite() && !nearest.is_finite());
                    assert!(expected == *b || (expected.is_nan() && b.is_nan()), "{a}: {b}");
                }
                assert_eq!(done.saturated, saturated);
                let (row, block) = measure(row_len, &values, &back, false);
                let what = format!("kind {kind}, rows of {row_len}: {done:?}");
                assert!((row - f64::from(done.row_l2)).abs() <= 1e-5 * row, "{what}: {row}");
                assert!((block - f64::from(done.block_max)).abs() <= 1e-6 * block, "{what}: {block}");
            }
        }
    }
}

#[test]
fn lossless_codecs_give_back_every_bit_of_every_type() {
    let mut encoder = Encoder::default();
    let mut random = Random::new(4);
    for codec in Codec::ALL {
        for dtype in DType::ALL {
            for n in [0, 1, 3, 64, 1000, 70_000] {
                let mut data: Vec<u8> = (0..n * dtype.size()).map(|_| random.bits() as u8).collect();
                if n == 1000 {
                    data.iter_mut().for_each(|b| *b &= 3);
                }
                let params = Params { codec, ..Params::default() };
                if !codec.is_lossless() && dtype == DType::F32 {
                    continue;
                }
                let (done, _, back) = round_trip(&mut encoder, &params, dtype, 64, &data);
                assert_eq!(done.codec, if codec.is_lossless() { codec } else { Codec::Zstd });
                assert_eq!((done.row_l2, done.block_max, done.saturated), (0.0, 0.0, 0));
                assert!(back == data, "{codec:?} {dtype:?} {n}");
            }
        }
    }
}

#[test]
fn rows_that_end_early_and_empty_packets_come_back() {
    let mut encoder = Encoder::default();
    let mut random = Random::new(5);
    for codec in Codec::ALL {
        for n in [0, 1, 100, 130, 1000] {
            let values = row(0, n, &mut random);
            let params = Params { codec, ..Params::default() };
            let (done, _, back) = round_trip(&mut encoder, &params, DType::F32, 100, &bytes(&values));
            assert_eq!(done.codec, codec);
            measure(100, &values, &floats(&back), false);
        }
    }
}

#[test]
fn nonsense_bounds_are_stored_without_loss() {
    let mut random = Random::new(6);
    let values = bytes(&row(0, 1000, &mut random));
    for bound in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-9, 1e9] {
        for codec in [Codec::Bounded, Codec::Fast] {
            let (done, _, back) =
                round_trip(&mut Encoder::default(), &Params { codec, error_bound: bound }, DType::F32, 100, &values);
            assert!(done.codec == Codec::Zstd && back == values, "{bound} {codec:?}");
        }
    }
}

#[test]
fn the_bytes_of_a_packet_stay_what_they_are() {
    // Files hold them: a change here is a new version of a body. What lz4 and zstd write may change with their
    // versions; what they wrote must stay readable.
    let mut values: Vec<f32> =
        (0..100_i16).map(|i| f32::from(i * i % 37 - 18) * if i < 64 { 0.25 } else { 1e-3 }).collect();
    (values[3], values[20], values[21]) = (21.5, -0.0, 1e-3);
    values.extend([0.0; 100]);
    let data = bytes(&values);
    let golden = include_str!("golden.txt");
    assert_eq!(golden.lines().count(), Codec::ALL.len());
    let mut now = String::new();
    let mut differ = false;
    for (codec, line) in Codec::ALL.into_iter().zip(golden.lines()) {
        let (_, body, back) =
            round_trip(&mut Encoder::default(), &Params { codec, error_bound: 1e-3 }, DType::F32, 100, &data);
        let (name, hex) = line.split_once(' ').unwrap();
        let stored: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[i * 2..i * 2 + 2], 16).unwrap()).collect();
        let mut read = Vec::new();
        let reads = decode(codec, DType::F32, 100, values.len(), &stored, &mut read);
        differ |= name != codec.name() || reads.is_err() || read != back;
        differ |= stored != body && !matches!(codec, Codec::Lz4 | Codec::Zstd);
        now += &format!("{} {}\n", codec.name(), body.iter().map(|b| format!("{b:02x}")).collect::<String>());
    }
    assert!(!differ, "{now}");
}

#[test]
fn no_bytes_make_decoding_panic_or_return_more_than_was_asked_for() {
    let mut encoder = Encoder::default();
    let mut random = Random::new(10);
    let mut seeds = Vec::new();
    for kind in 0..KINDS {
        let values: Vec<f32> = (0..3).flat_map(|_| row(kind, 150, &mut random)).collect();
        for codec in Codec::ALL {
            let mut body = Vec::new();
            let done =
                encoder.encode(&Params { codec, error_bound: 1e-3 }, DType::F32, 150, &bytes(&values), &mut body);
            seeds.push((done.codec, body));
        }
    }
    let (mut refused, mut out) = (0, Vec::new());
    for round in 0..100_000 {
        let (codec, body) = &seeds[random.below(seeds.len())];
        let mut body = body.clone();
        let (mut n, mut row_len) = (450, 150);
        match round % 8 {
            0 => body.truncate(random.below(body.len() + 1)),
            1 => body.extend((0..1 + random.below(9)).map(|_| random.bits() as u8)),
            2 => n = random.below(1000),
            3 => row_len = random.below(700),
            4 => body = (0..random.below(300)).map(|_| random.bits() as u8).collect(),
            _ => {}
        }
        for _ in 0..random.below(4) {
            if !body.is_empty() {
                let at = if random.below(2) == 0 { random.below(body.len().min(24)) } else { random.below(body.len()) };
                body[at] = if random.below(2) == 0 { random.bits() as u8 } else { body[at] ^ 1 << random.below(8) };
            }
        }
        let isa = isas()[random.below(isas().len())];
        let codec = if random.below(20) == 0 { Codec::ALL[random.below(7)] } else { *codec };
        let dtype = if random.below(20) == 0 { DType::ALL[random.below(8)] } else { DType::F32 };
        out.clear();
        match decode(codec, dtype, row_len, n, &body, &mut out) {
            Ok(()) => assert_eq!(out.len(), n * dtype.size()),
            Err(_) => {
                refused += 1;
                assert!(out.is_empty());
            }
        }
        out.clear();
        _ = decode_with(isa, codec, dtype, row_len, n, &body, &mut out);
        assert!(out.capacity() < 1 << 20, "{}", out.capacity());
    }
    // Half of them are damaged in ways that nobody can miss.
    assert!(refused > 40_000, "{refused}");
}

#[test]
fn counts_that_memory_cannot_hold_are_errors() {
    for codec in Codec::ALL {
        for n in [usize::MAX, usize::MAX / 4, usize::MAX / 8, 1 << 60] {
            assert!(decode(codec, DType::F32, 64, n, &[1, 0, 0], &mut Vec::new()).is_err(), "{codec:?}");
        }
    }
}

#[test]
fn rows_that_are_encoded_apart_make_the_same_body() {
    let (mut encoder, mut random) = (Encoder::default(), Random::new(11));
    for codec in [Codec::Bounded, Codec::Fast] {
        for row_len in [16, 150, 576] {
            let params = Params { codec, error_bound: 1e-3 };
            let values: Vec<f32> = (0..KINDS).flat_map(|kind| row(kind, row_len, &mut random)).collect();
            let (data, mut whole, mut apart) = (bytes(&values), Vec::new(), Vec::new());
            let done = encoder.encode(&params, DType::F32, row_len, &data, &mut whole);
            assert_eq!(params.row_codec(DType::F32, row_len, data.len()), Some(done.codec));
            params.begin_rows(codec, &mut apart);
            let mut errors = Errors::default();
            // One row, two, three, ... at a time, each by an encoder that has seen others before.
            let (mut left, mut n) = (data.as_slice(), 1);
            while !left.is_empty() {
                let (rows, rest) = left.split_at((n * row_len * 4).min(left.len()));
                errors = errors.max(Encoder::default().rows(&params, codec, row_len, rows, &mut apart));
                (left, n) = (rest, n + 1);
            }
            assert!(apart == whole, "{codec:?}, rows of {row_len}");
            assert_eq!((errors.row as f32, errors.block as f32), (done.row_l2, done.block_max));
        }
    }
    // What is stored otherwise has no rows of its own.
    let bounded = Params { codec: Codec::Bounded, error_bound: 1e-3 };
    assert_eq!(bounded.row_codec(DType::F16, 576, 1152), None);
    assert_eq!(bounded.row_codec(DType::F32, 8, 32), None);
    assert_eq!(Params::default().row_codec(DType::F32, 576, 2304), None);
}
