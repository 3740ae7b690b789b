use super::*;
use crate::random::{Draw, Purpose};
use half::{bf16, f16};

fn draw(seed: u64, count: usize) -> Vec<f32> {
    Draw::new(seed, 0, 0, Purpose::Check).standard_normal(count)
}

/// The sum in f64 and, in the same order, what the result may be off by.
fn plain(m: usize, n: usize, k: usize, a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|k| a(i / n, k) * b(k, i % n)).sum()).collect()
}

fn close(found: &[f32], expected: &[f64]) {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| *a as f64 - b));
    assert!(error < 1e-6 * norm(&mut expected.iter().copied()), "{error}");
}

#[test]
fn every_kernel_sums_terms_of_every_layout_and_number_type() {
    for (m, n, k) in [(1, 1, 1), (5, 7, 3), (13, 33, 200), (64, 48, 391), (70, 16, 17), (31, 95, 64), (9, 4, 0)] {
        let (a, b) = (draw(1, m * k), draw(2, n * k));
        let (a2, b2, bias) = (draw(3, m * 5), draw(4, 5 * n), draw(5, n));
        let narrow16: Vec<f16> = b.iter().map(|x| f16::from_f32(*x)).collect();
        let narrow: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
        for instructions in Instructions::all() {
            for kind in 0..3 {
                let stored = [Stored::Wide(&b[..]), Stored::F16(&narrow16), Stored::Bf16(&narrow)][kind];
                let value = |i: usize| [b[i], narrow16[i].to_f32(), narrow[i].to_f32()][kind] as f64;
                let second = || Term::new(Rows::strided(&a2, 5), Columns::matrix(Stored::Wide(&b2), 0, n), 5);
                let second_value = plain(m, n, 5, |m, k| a2[m * 5 + k] as f64, |k, n_| b2[k * n + n_] as f64);
                let with = |first: Term<f32>, first_value: Vec<f64>| {
                    let mut out = vec![f32::NAN; m * n];
                    let terms = [first, second()];
                    product_on(instructions, Out::new(&mut out, n), Initial::Bias(&bias), &terms, Cores::All);
                    let sum = first_value.iter().zip(&second_value).enumerate();
                    close(&out, &sum.map(|(i, (a, b))| a + b + bias[i % n] as f64).collect::<Vec<_>>());
                };
                // Weight (n, k), rows (m, k).
                let rows = Rows::strided(&a, k);
                let expected = plain(m, n, k, |m, i| a[m * k + i] as f64, |i, n| value(n * k + i));
                with(Term::new(rows, Columns::weight(stored, 0, k), k), expected);
                // Matrix (k, n), rows of a transposed (k, m).
                let rows = Rows::transposed(&a, m);
                let expected = plain(m, n, k, |row, i| a[i * m + row] as f64, |i, col| value(i * n + col));
                with(Term::new(rows, Columns::matrix(stored, 0, n), k), expected);
            }
        }
    }
}

#[test]
fn terms_in_bf16_are_the_sums_of_rounded_factors() {
    let round = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x).to_f64()).collect::<Vec<_>>();
    for instructions in Instructions::all().filter(|instructions| instructions.multiply_bf16()) {
        for (m, n, k) in [(1, 1, 2), (13, 33, 402), (64, 48, 390), (5, 80, 16), (30, 17, 3)] {
            let (a, b) = (draw(1, m * k), draw(2, n * k));
            let kept: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
            // An odd k is not rounded.
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let (x, y) = if k % 2 == 0 { (round(&a), round(&b)) } else { (wide(&a), wide(&b)) };
            for stored in [Stored::Wide(&b[..]), Stored::Bf16(&kept)] {
                if k % 2 == 1 && matches!(stored, Stored::Bf16(_)) {
                    continue;
                }
                let with = |rows, columns, expected: Vec<f64>| {
                    let mut out = vec![f32::NAN; m * n];
                    let terms = [Term::new(rows, columns, k).rounded(Precision::Bf16)];
                    product_on(instructions, Out::new(&mut out, n), Initial::Zero, &terms, Cores::All);
                    close(&out, &expected);
                };
                let expected = plain(m, n, k, |m, i| x[m * k + i], |i, n| y[n * k + i]);
                with(Rows::strided(&a, k), Columns::weight(stored, 0, k), expected);
                let expected = plain(m, n, k, |row, i| x[i * m + row], |i, col| y[i * n + col]);
                with(Rows::transposed(&a, m), Columns::matrix(stored, 0, n), expected);
                let expected = plain(m, n, k, |m, i| x[m * k + i], |i, col| y[i * n + col]);
                with(Rows::strided(&a, k), Columns::matrix(stored, 0, n), expected);
            }
        }
    }
}

#[test]
fn eight_bits_are_multiplied_as_the_numbers_that_they_stand_for_to_the_bit() {
    for (m, n, k) in [(1, 1, 2), (13, 33, 402), (64, 48, 390), (5, 80, 17), (30, 17, 3), (70, 16, 64)] {
        let a = draw(1, m * k);
        // Rows of twice the length, of which the second half is multiplied, as of a kernel's tap.
        for (rows, length) in [(n, k), (k, n)] {
            let numbers: Vec<u8> = draw(2, rows * 2 * length).iter().map(|x| (128.0 + 50.0 * x) as u8).collect();
            let row_scales: Vec<f32> = draw(3, rows).iter().map(|x| x * x * 0.01).collect();
            let wide = |(i, x): (usize, &u8)| (f32::from(*x) - 128.0) * row_scales[i / (2 * length)];
            let wide: Vec<f32> = numbers.iter().enumerate().map(wide).collect();
            let stored = Stored::Int8 { numbers: &numbers, row_scales: &row_scales };
            let view = if length == k { Columns::weight } else { Columns::matrix };
            let view = |stored| view(stored, length, 2 * length);
            for instructions in Instructions::all() {
                for precision in [Precision::Full, Precision::Bf16] {
                    let of = |stored| {
                        let mut out = vec![f32::NAN; m * n];
                        let terms = [Term::new(Rows::strided(&a, k), view(stored), k).rounded(precision)];
                        product_on(instructions, Out::new(&mut out, n), Initial::Zero, &terms, Cores::All);
                        out
                    };
                    let (found, expected) = (of(stored), of(Stored::Wide(&wide)));
                    assert!(found == expected, "{m} {n} {k} {length} {instructions:?} {precision:?}");
                    assert!(m * n == 1 || found.iter().any(|x| x.abs() > 0.01));
                }
            }
        }
    }
}

#[test]
fn eight_bits_in_f64_are_whole_numbers_times_their_scale() {
    let (m, n, k) = (3, 5, 20);
    let a: Vec<f64> = draw(1, m * k).into_iter().map(f64::from).collect();
    let numbers: Vec<u8> = draw(2, n * k).iter().map(|x| (128.0 + 50.0 * x) as u8).collect();
    let row_scales = draw(3, n);
    let mut out = vec![0f64; m * n];
    let columns = Columns::weight(Stored::Int8 { numbers: &numbers, row_scales: &row_scales }, 0, k);
    product(Out::new(&mut out, n), Initial::Zero, &[Term::new(Rows::strided(&a, k), columns, k)], Cores::This);
    let value = |n: usize, i: usize| (f64::from(numbers[n * k + i]) - 128.0) * f64::from(row_scales[n]);
    let expected = plain(m, n, k, |m, i| a[m * k + i], |i, n| value(n, i));
    assert!(out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9));
}

#[test]
fn rows_and_columns_from_tables_leave_padding_out() {
    let (m, n, k) = (40, 24, 30);
    let (a, b) = (draw(1, m * k), draw(2, k * n));
    let shuffled = |count: usize, width: usize, pad: usize| -> Vec<u32> {
        (0..count).map(|i| if i % pad == 2 { PADDING } else { ((i * 7 + 3) % count * width) as u32 }).collect()
    };
    let (rows, ks) = (shuffled(m, k, 5), shuffled(k, n, 4));
    let outs: Vec<u32> = (0..m).map(|i| ((i * 3 + 1) % m * n) as u32).collect();
    let at = |table: &[u32], i: usize, x: &[f32], j: usize| match table[i] {
        PADDING => 0.0,
        start => x[start as usize + j] as f64,
    };
    let expected = plain(m, n, k, |m, i| at(&rows, m, &a, i), |i, n| at(&ks, i, &b, n));
    for instructions in Instructions::all() {
        let mut out = vec![f32::NAN; m * n];
        let terms = [Term::new(Rows::table(&a, &rows), Columns::table(&b, &ks), k)];
        product_on(instructions, Out::permuted(&mut out, &outs, n), Initial::Zero, &terms, Cores::All);
        let ordered: Vec<f32> = outs.iter().flat_map(|start| out[*start as usize..][..n].to_vec()).collect();
        close(&ordered, &expected);
    }
}

#[test]
fn the_cut_into_tasks_changes_no_bit() {
    let (m, n, k) = (700, 96, 500);
    let (a, b) = (draw(1, m * k), draw(2, n * k));
    let run = |cores, rows: std::ops::Range<usize>| {
        let mut out = vec![0f32; rows.len() * n];
        let terms =
            [Term::new(Rows::strided(&a[rows.start * k..rows.end * k], k), Columns::weight(Stored::Wide(&b), 0, k), k)];
        product(Out::new(&mut out, n), Initial::Zero, &terms, cores);
        out
    };
    let all = run(Cores::All, 0..m);
    assert_eq!(all, run(Cores::This, 0..m));
    assert_eq!(all[5 * n..17 * n], run(Cores::All, 5..17));
}

#[test]
fn f64_is_summed_in_f64() {
    let (m, n, k) = (9, 20, 250);
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
    let (a, b) = (wide(draw(1, m * k)), wide(draw(2, n * k)));
    let mut out = vec![0f64; m * n];
    let terms = [Term::new(Rows::strided(&a, k), Columns::weight(Stored::Wide(&b), 0, k), k)];
    product(Out::new(&mut out, n), Initial::Zero, &terms, Cores::This);
    let expected = plain(m, n, k, |m, i| a[m * k + i], |i, n| b[n * k + i]);
    assert!(out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
}
