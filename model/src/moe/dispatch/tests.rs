//! Both ends of the wire, and bytes that make no sense.

use shoal_kernels::fp8::ScaleFormat;

use super::*;

const FORM: RowForm = RowForm { cols: 3, math: Math::F32, n_experts: 2 };

fn rows() -> Operand {
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    Operand::F32(Tensor::from_f32(DType::F32, &[4, 3], &values))
}

#[test]
fn a_token_goes_once_to_each_shard_that_owns_one_of_its_experts() {
    // Tokens 0..4 choose two of the experts 0..4; shards own 0..2 and 2..4.
    let chosen = [1, 0, 3, 0, 2, 3, 1, 2];
    let gates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    let sent = Outgoing::of(&chosen, 2, &[0..2, 2..4]);
    assert_eq!((&sent[0].tokens[..], &sent[1].tokens[..]), (&[0, 1, 3][..], &[1, 2, 3][..]));
    assert_eq!(sent[0].slots, [1, 0, 3, 6]);

    let messages: Vec<_> = sent.iter().map(|rows_to| rows_to.message(&rows(), &gates)).collect();
    let received = Received::read(&messages, &FORM).unwrap();
    assert_eq!((received.rows_from(), &received.pairs_from()[..]), (&[3, 3][..], &[4, 4][..]));
    let (segments, places) = received.segments(2);
    let mut pairs = segments.iter().flat_map(|segment| &segment.pairs);
    assert!(pairs.all(|pair| *pair < places.len()));
    assert_eq!(*segments[0].rows, [0, 1, 4, 5]);
    assert_eq!(segments[0].gates, [0.2, 0.4, 0.5, 0.8]);
    assert_eq!(*segments[1].rows, [0, 2, 3, 4]);
    assert_eq!(received.rows.to_f32()[3 * 4..3 * 5], [6.0, 7.0, 8.0]);

    let mut d_gates = vec![0.0; 8];
    for (rows_to, gates_to) in sent.iter().zip([[10.0, 11.0, 12.0, 13.0], [14.0; 4]]) {
        rows_to.place_gates(&gates_to, &mut d_gates);
    }
    assert_eq!(d_gates, [11.0, 10.0, 14.0, 12.0, 14.0, 14.0, 13.0, 14.0]);
}

#[test]
fn rows_arrive_as_the_operand_that_left() {
    // Two tiles, the second of one value.
    let values: Vec<f32> = (0..2 * 129).map(|i| (i as f32 * 0.7).sin()).collect();
    let x = Tensor::from_f32(DType::F32, &[2, 129], &values);
    let forms = [
        (Math::Fp8(ScaleFormat::Pow2), 129 + 2),
        (Math::Fp8(ScaleFormat::Fp32), 129 + 8),
        (Math::Bf16, 258),
        (Math::F32, 516),
    ];
    for (math, bytes) in forms {
        let form = RowForm { cols: 129, math, n_experts: 1 };
        let n = Operand::prepare(&x, math);
        let sent = Outgoing::of(&[0, 0], 1, std::slice::from_ref(&(0..1)));
        let message = sent[0].message(&n, &[0.25, 0.75]);
        assert_eq!(message.len(), 8 + 2 * (bytes + 12), "{math:?}");
        assert_eq!(*Received::read(&[message], &form).unwrap().rows, n);
        let message = sent[0].rows_message(&n);
        assert_eq!(message.len(), 2 * bytes, "{math:?}");
        assert_eq!(read_operand(&[message], &[2], &form).unwrap(), n);
    }
}

#[test]
fn a_scale_that_no_tile_has_is_named_with_its_sender() {
    let x = Tensor::from_f32(DType::F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for (format, want) in [
        (ScaleFormat::Pow2, "row 1 with the scale 2^-127, want at least 2^-126"),
        (ScaleFormat::Fp32, "row 1 with the scale 0e0, want 2^-126 or more, or a NaN"),
    ] {
        let math = Math::Fp8(format);
        let form = RowForm { cols: 3, math, n_experts: 2 };
        let sent = Outgoing::of(&[0, 1], 1, std::slice::from_ref(&(0..2)));
        let good = sent[0].rows_message(&Operand::prepare(&x, math));
        let mut bad = good.clone();
        bad[good.len() - format.bytes()..].fill(0);
        let error = read_operand(&[good, bad], &[2, 2], &form).unwrap_err();
        assert_eq!(error, (1, want.to_string()));
    }
}

#[test]
fn bytes_that_make_no_sense_are_described() {
    let sent = Outgoing::of(&[0, 1], 2, std::slice::from_ref(&(0..2)));
    let good = sent[0].message(&rows(), &[0.25, 0.75]);
    let check = |change: &dyn Fn(&mut Vec<u8>), want: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let (shard, problem) = Received::read(&[good.clone(), bad], &FORM).unwrap_err();
        assert_eq!((shard, problem.as_str()), (1, want));
    };
    // One row of three FP32 values from byte 8 on, then two pairs: rows from 20 on, experts from 28 on, gates from 36 on.
    check(&|bad| bad.truncate(2), "2 bytes, want at least 8");
    check(&|bad| bad.truncate(25), "25 bytes for 1 rows and 2 pairs, want 44");
    check(&|bad| bad.push(0), "45 bytes for 1 rows and 2 pairs, want 44");
    check(&|bad| bad[0] = 255, "44 bytes for 255 rows and 2 pairs, want 3092");
    check(
        &|bad| bad[..8].fill(255),
        "44 bytes for 4294967295 rows and 4294967295 pairs, want 103079215088",
    );
    check(&|bad| bad[20] = 1, "pair 0 of row 1, want 0 or the one behind it");
    check(&|bad| bad[24] = 2, "pair 1 of row 2, want 0 or the one behind it");
    check(&|bad| bad[24] = 1, "pairs of 2 rows, want 1");
    check(&|bad| bad[28] = 2, "row 0 for expert 2, want 0..2 (ascending)");
    check(&|bad| bad[32] = 0, "row 0 for expert 0, want 1..2 (ascending)");
    let none = [&[2, 0, 0, 0, 0, 0, 0, 0][..], &[0; 24]].concat();
    let (_, problem) = Received::read(&[none], &FORM).unwrap_err();
    assert_eq!(problem, "pairs of 0 rows, want 2");
    let error = read_rows_and_gates(&[0; 19], &sent[0], (3, DType::F32)).unwrap_err();
    assert_eq!(error, "19 bytes, want 20");
}
