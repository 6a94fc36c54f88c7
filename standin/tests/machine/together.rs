//! What lanes and warps do together: shuffles, votes, matrices in shared memory, barriers.

use shoal_standin::{FaultKind, Memory, Options, Schedule};

use super::kit::{download, kernel, pack, run};

/// One result a lane of `warps` warps.
fn lanes(
    body: &str,
    declarations: &str,
    warps: u32,
    options: &Options,
) -> Result<Vec<u32>, FaultKind> {
    let memory = Memory::new();
    let output = memory.allocate(128 * warps as usize);
    let body = format!("{body}\nmad.wide.u32 %rd4, %r4, 4, %rd2; st.global.u32 [%rd4], %d;");
    let ptx = kernel("sm_80", declarations, &body);
    run(&ptx, &memory, (1, 32 * warps, 0), &pack(&[0, output], &[]), options)
        .map_err(|fault| fault.kind)?;
    Ok(download(&memory, output))
}

fn one_warp(body: &str) -> Vec<u32> {
    lanes(body, "", 1, &Options::default()).unwrap()
}

#[test]
fn every_shuffle() {
    let value = "mul.lo.u32 %a, %r1, 10;";
    let check = |instruction: &str, expected: &dyn Fn(u32) -> u32| {
        let out = one_warp(&format!("{value} shfl.sync.{instruction}, -1;"));
        for lane in 0..32 {
            assert_eq!(out[lane as usize], expected(lane), "{instruction} lane {lane}");
        }
    };
    check("bfly.b32 %d, %a, 5, 31", &|lane| 10 * (lane ^ 5));
    check("down.b32 %d, %a, 3, 31", &|lane| 10 * if lane + 3 < 32 { lane + 3 } else { lane });
    check("up.b32 %d, %a, 3, 0", &|lane| 10 * if lane >= 3 { lane - 3 } else { lane });
    check("idx.b32 %d, %a, 7, 31", &|_| 70);
    // Segments of 8 lanes: the mask in bits 8 to 12.
    check("down.b32 %d, %a, 3, 0x181F", &|lane| {
        10 * if lane % 8 + 3 < 8 { lane + 3 } else { lane }
    });
    check("idx.b32 %d, %a, 2, 0x181F", &|lane| 10 * (lane / 8 * 8 + 2));
    let out = one_warp(&format!(
        "{value} shfl.sync.up.b32 %d|%p1, %a, 1, 0, -1; selp.u32 %d, 1, 0, %p1;"
    ));
    assert_eq!(out.iter().sum::<u32>(), 31);
}

#[test]
fn votes_and_reductions() {
    let odd = "and.b32 %r5, %r1, 1; setp.eq.u32 %p1, %r5, 1;";
    assert_eq!(one_warp(&format!("{odd} vote.sync.ballot.b32 %d, %p1, -1;")), [0xAAAA_AAAA; 32]);
    let any = format!(
        "{odd} vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, %p1, -1; \
        selp.u32 %r6, 2, 0, %p2; selp.u32 %r7, 1, 0, %p3; add.u32 %d, %r6, %r7;"
    );
    assert_eq!(one_warp(&any), [2; 32]);
    assert_eq!(one_warp("redux.sync.add.s32 %d, %r1, -1;"), [496; 32]);
    assert_eq!(one_warp("redux.sync.max.u32 %d, %r1, -1;"), [31; 32]);
    // Two halves with masks of their own, in one instruction and after divergence.
    let halves = "setp.lt.u32 %p1, %r1, 16; selp.u32 %r5, 0xFFFF, 0xFFFF0000, %p1; redux.sync.min.u32 %d, %r1, %r5;";
    let out = one_warp(halves);
    assert_eq!((out[3], out[20]), (0, 16));
    let apart = "setp.lt.u32 %p1, %r1, 16; @%p1 bra $low; redux.sync.add.u32 %d, %r1, 0xFFFF0000; bra $end;\n\
        $low: activemask.b32 %d; $end:";
    let out = one_warp(apart);
    assert_eq!((out[3], out[20]), (0xFFFF, (16..32).sum()));
}

#[test]
fn lanes_that_take_different_ways_meet_at_a_shuffle_with_all() {
    // Each side comes to the same instruction on its own; it waits for the other.
    let body = "and.b32 %r5, %r1, 1; setp.eq.u32 %p1, %r5, 1; mov.u32 %a, 1; @%p1 bra $odd; mov.u32 %a, 2; bra $meet;\n\
        $odd: add.u32 %a, %a, 2; $meet: shfl.sync.bfly.b32 %d, %a, 1, 31, -1;";
    let out = one_warp(body);
    assert_eq!((out[0], out[1]), (3, 2));
    // Where one side never comes, that is a fault.
    let body = "and.b32 %r5, %r1, 1; setp.eq.u32 %p1, %r5, 1; mov.u32 %d, 0; @%p1 bra $end;\n\
        shfl.sync.bfly.b32 %d, %r1, 1, 31, -1; $end: add.u32 %d, %d, 1; bar.warp.sync -1;";
    assert_eq!(lanes(body, "", 1, &Options::default()).unwrap_err(), FaultKind::Divergence);
    // And so is a source that does not take part.
    let body = "setp.ge.u32 %p1, %r1, 16; mov.u32 %d, 0; @%p1 bra $end; shfl.sync.bfly.b32 %d, %r1, 16, 31, 0xFFFF; $end:";
    assert_eq!(lanes(body, "", 1, &Options::default()).unwrap_err(), FaultKind::Divergence);
}

const TILE: &str = ".shared .align 16 .b8 tile[1024];";

/// 8 x 8 matrices of 16 bits in shared memory: element (row, column) of matrix i is 100 i + 10 row + column.
const FILL: &str = "mov.u32 %r6, 0;\n\
    $fill: mad.lo.u32 %r7, %r6, 32, %r1; shr.u32 %r8, %r7, 6; bfe.u32 %r9, %r7, 3, 3; and.b32 %r10, %r7, 7;\n\
    mul.lo.u32 %r8, %r8, 100; mad.lo.u32 %r8, %r9, 10, %r8; add.u32 %r8, %r8, %r10; shl.b32 %r7, %r7, 1;\n\
    st.shared.u16 [%r7], %r8; add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, 8; @%p1 bra $fill;\n\
    bar.warp.sync -1; shl.b32 %r11, %r1, 4;";

#[test]
fn matrices_are_loaded_row_by_row_and_transposed() {
    for (count, trans) in [(1, ""), (2, ""), (4, ""), (1, ".trans"), (2, ".trans"), (4, ".trans")] {
        let registers = ["%r20", "%r21", "%r22", "%r23"][..count].join(", ");
        for matrix in 0..count {
            let body = format!(
                "{FILL} ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r11]; mov.b32 %d, %r{};",
                20 + matrix
            );
            let out = lanes(&body, TILE, 1, &Options::default()).unwrap();
            for (lane, got) in out.iter().enumerate() {
                // PTX ISA 9.7.14.5.15: lane holds row lane / 4, columns 2 (lane % 4) and the next.
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let element = |row: usize, column: usize| {
                    let (row, column) =
                        if trans.is_empty() { (row, column) } else { (column, row) };
                    (100 * matrix + 10 * row + column) as u32
                };
                assert_eq!(
                    *got,
                    element(row, column + 1) << 16 | element(row, column),
                    "x{count}{trans} lane {lane}"
                );
            }
        }
    }
}

#[test]
fn a_matrix_load_takes_part_in_races_and_counts_conflicts() {
    // Without the warp's barrier, other lanes' stores are not ordered before the load.
    let body = format!(
        "{} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%d}}, [%r11];",
        FILL.replace("bar.warp.sync -1;", "")
    );
    assert_eq!(lanes(&body, TILE, 1, &Options::default()).unwrap_err(), FaultKind::Race);
    let body = format!(
        "{FILL} shl.b32 %r11, %r1, 7; and.b32 %r11, %r11, 0x380; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%d}}, [%r11];"
    );
    let memory = Memory::new();
    let ptx = kernel("sm_80", TILE, &body);
    let stats = run(&ptx, &memory, (1, 32, 0), &pack(&[0, 0], &[]), &Options::default()).unwrap();
    assert_eq!(stats.bank_conflicts, 7, "8 rows that begin in one bank");
}

#[test]
fn barriers_of_parts_of_a_block_order_just_these() {
    // Warp 0 writes, warp 1 reads after a barrier of the two; warp 2 goes by.
    let body = |wait: &str| {
        format!(
            "mov.u32 %d, 0; shr.u32 %r5, %r1, 5; setp.eq.u32 %p1, %r5, 0; setp.eq.u32 %p2, %r5, 1; and.b32 %r6, %r1, 31; shl.b32 %r6, %r6, 2;\n\
         @%p1 st.shared.u32 [%r6], %r1; @%p1 bar.arrive 3, 64; {wait} @%p2 ld.shared.u32 %d, [%r6+0];"
        )
    };
    for schedule in [Schedule::RoundRobin, Schedule::WarpFirst, Schedule::Random(8)] {
        let options = Options { schedule, ..Options::default() };
        let out = lanes(&body("@%p2 bar.sync 3, 64;"), TILE, 3, &options).unwrap();
        assert_eq!(out[32..64], (0..32).collect::<Vec<u32>>());
        assert_eq!(lanes(&body(""), TILE, 3, &options).unwrap_err(), FaultKind::Race);
    }
}

#[test]
fn barriers_that_count_and_vote() {
    let body = "setp.lt.u32 %p1, %r1, 40; bar.red.popc.u32 %d, 0, %p1; bar.red.or.pred %p2, 0, %p1; \
        bar.red.and.pred %p3, 0, %p1; selp.u32 %r5, 1000, 0, %p2; selp.u32 %r6, 2000, 0, %p3; add.u32 %d, %d, %r5; add.u32 %d, %d, %r6;";
    assert_eq!(lanes(body, "", 2, &Options::default()).unwrap(), [1040; 64]);
}
