//! State spaces: vectors, small types, local and constant memory, variables, generic addresses, atomics.

use shoal_standin::{FaultKind, Launch, Memory, Module, Options, launch};

use super::kit::{TILE, download, evaluate, kernel, pack, run, upload, words_to_bytes};

#[test]
fn parameters_by_value_local_tables_constants_and_module_variables() {
    let module = Module::load(TILE).unwrap();
    let kernel = module.entry("lookup").unwrap();
    // struct { pointer, pointer, int, unsigned char } with its padding.
    assert_eq!(
        (kernel.params().len(), kernel.params()[0].size, kernel.params()[0].align),
        (1, 24, 8)
    );
    let memory = Memory::new();
    let order: Vec<u32> = (0..20).map(|i| (i * 5 + 3) % 11).collect();
    let (input, output) = (upload(&memory, &words_to_bytes(&order)), memory.allocate(80));
    let mut params = pack(&[input, output], &[20]);
    params.extend([7, 0, 0, 0]);
    let options = Options::default();
    let launched = Launch {
        grid: [1, 1, 1],
        block: [32, 1, 1],
        dynamic_shared: 0,
        params: &params,
        options: &options,
    };
    launch(kernel, &memory, &launched).unwrap();
    for (i, got) in download(&memory, output).into_iter().enumerate() {
        let table = |at: u32| {
            let at = at & 7;
            at * at + 7 + if i == 0 && at == order[0] & 7 { 100 } else { 0 }
        };
        let expected =
            table(order[i]) as f32 + [0.5, 1.5, -2.0][i % 3] + [10.0, 20.0, 30.0, 40.0][i % 4];
        assert_eq!(got, expected.to_bits(), "element {i}");
    }
}

/// Runs a body of one warp over 256 bytes; returns them.
fn over(body: &str, declarations: &str, bytes: &[u8]) -> Result<Vec<u32>, FaultKind> {
    let memory = Memory::new();
    let (input, output) = (upload(&memory, bytes), memory.allocate(256));
    memory.fill(output, 0, 256).unwrap();
    let ptx = kernel("sm_80", declarations, body);
    let params = pack(&[input, output], &[]);
    run(&ptx, &memory, (1, 32, 0), &params, &Options::default()).map_err(|fault| fault.kind)?;
    Ok(download(&memory, output))
}

#[test]
fn small_types_extend_and_vectors_keep_their_order() {
    let bytes: Vec<u8> = (0..=255).collect();
    let at = "mad.wide.u32 %rd3, %r4, 4, %rd1; mad.wide.u32 %rd4, %r4, 4, %rd2;";
    let low = |out: Vec<u32>, f: &dyn Fn(usize) -> u32| {
        for (i, got) in out[..32].iter().enumerate() {
            assert_eq!(*got, f(i), "lane {i}");
        }
    };
    let signed = over(
        &format!(
            "{at} add.u64 %rd3, %rd3, 128; ld.global.s8 %d, [%rd3+1]; st.global.u32 [%rd4], %d;"
        ),
        "",
        &bytes,
    );
    low(signed.unwrap(), &|i| (129 + 4 * i) as u8 as i8 as i32 as u32);
    let half =
        over(&format!("{at} ld.global.nc.u16 %d, [%rd3+2]; st.global.b32 [%rd4], %d;"), "", &bytes);
    low(half.unwrap(), &|i| u32::from(bytes[4 * i + 2]) | u32::from(bytes[4 * i + 3]) << 8);
    let byte = over(
        &format!("{at} st.global.u8 [%rd4+3], %r4; st.global.v2.u8 [%rd4], {{%r4, 7}};"),
        "",
        &bytes,
    );
    low(byte.unwrap(), &|i| (i as u32) << 24 | 7 << 8 | i as u32);
    let vector = "shl.b32 %r5, %r4, 3; mad.wide.u32 %rd3, %r5, 1, %rd1; mad.wide.u32 %rd4, %r5, 1, %rd2; \
         ld.global.v4.u16 {%r10, %r11, %r12, %r13}, [%rd3]; st.global.v4.u16 [%rd4], {%r13, %r12, %r11, %r10};";
    let out = over(vector, "", &bytes).unwrap();
    for (i, word) in out.iter().enumerate() {
        // Four 16-bit elements reversed: words change places, and halves in them.
        let from = 4 * (i ^ 1);
        let word_in = u32::from_le_bytes(bytes[from..from + 4].try_into().unwrap());
        assert_eq!(*word, word_in.rotate_left(16), "word {i}");
    }
    let wide = "mad.wide.u32 %rd3, %r4, 8, %rd1; mad.wide.u32 %rd4, %r4, 8, %rd2; ld.global.v2.u32 {%r10, %r11}, [%rd3]; \
         mov.b64 %q, {%r11, %r10}; st.global.u64 [%rd4], %q;";
    let out = over(wide, "", &bytes).unwrap();
    assert_eq!(out[0], u32::from_le_bytes([4, 5, 6, 7]));
}

#[test]
fn generic_addresses_find_their_space() {
    let declarations = ".shared .align 16 .b8 tile[256];\n.local .align 8 .b8 depot[16];";
    let body = "mov.u64 %rd5, tile; cvta.shared.u64 %rd6, %rd5; mad.wide.u32 %rd7, %r4, 4, %rd6;\n\
        mul.lo.u32 %r10, %r4, 3; st.u32 [%rd7], %r10; bar.sync 0;\n\
        cvta.to.shared.u64 %rd8, %rd6; xor.b32 %r11, %r4, 1; mad.wide.u32 %rd8, %r11, 4, %rd8;\n\
        ld.shared.u32 %r12, [%rd8];\n\
        mov.u64 %rd9, depot; cvta.local.u64 %rd10, %rd9; st.u32 [%rd10+4], %r12; ld.local.u32 %r13, [depot+4];\n\
        mad.wide.u32 %rd4, %r4, 4, %rd2; st.u32 [%rd4], %r13;";
    let out = over(body, declarations, &[0; 4]).unwrap();
    for (lane, got) in out[..32].iter().enumerate() {
        assert_eq!(*got, 3 * (lane as u32 ^ 1));
    }
    let overrun = "st.local.u32 [depot+16], %r4;";
    assert_eq!(over(overrun, declarations, &[0; 4]).unwrap_err(), FaultKind::Overrun);
    let odd = "mov.u64 %rd5, tile; add.u64 %rd5, %rd5, 2; ld.shared.u32 %d, [%rd5];";
    assert_eq!(over(odd, declarations, &[0; 4]).unwrap_err(), FaultKind::Misaligned);
}

#[test]
fn atomics_lose_nothing_and_floats_among_them_are_counted() {
    let memory = Memory::new();
    let sums = memory.allocate(32);
    memory.fill(sums, 0, 32).unwrap();
    let body = "red.global.add.u32 [%rd2], %r4; atom.global.max.u32 %d, [%rd2+4], %r4; cvt.u64.u32 %q, %r4;\n\
        shl.b64 %q, %q, 30; atom.add.u64 %x, [%rd2+8], %q; red.global.add.f32 [%rd2+16], 0f3F800000;\n\
        atom.global.cas.b32 %d, [%rd2+20], 0, 9; atom.global.exch.b32 %d, [%rd2+24], 5;\n\
        atom.global.inc.u32 %d, [%rd2+28], 6;";
    let ptx = kernel("sm_80", "", body);
    let options = Options { threads: 4, ..Options::default() };
    let stats = run(&ptx, &memory, (8, 64, 0), &pack(&[sums, sums], &[]), &options).unwrap();
    let n = 512u32;
    let sum = n * (n - 1) / 2;
    let wide = u64::from(sum) << 30;
    let out = download(&memory, sums);
    assert_eq!(out[..4], [sum, n - 1, wide as u32, (wide >> 32) as u32]);
    assert_eq!(out[4..], [(n as f32).to_bits(), 9, 5, n % 7]);
    assert_eq!(stats.float_atomics, 16);
}

#[test]
fn sectors_show_what_is_not_coalesced() {
    let with = |stride: u32| {
        let memory = Memory::new();
        let (input, output) = (memory.allocate(32 * 4 * 32), memory.allocate(128));
        let body = format!(
            "mul.lo.u32 %r5, %r4, {stride}; mad.wide.u32 %rd3, %r5, 4, %rd1; ld.global.u32 %d, [%rd3]; \
             mad.wide.u32 %rd4, %r4, 4, %rd2; st.global.u32 [%rd4], %d;"
        );
        let ptx = kernel("sm_80", "", &body);
        run(&ptx, &memory, (1, 32, 0), &pack(&[input, output], &[]), &Options::default()).unwrap()
    };
    let (dense, strided, one) = (with(1), with(32), with(0));
    assert_eq!((dense.global_sectors_read, dense.global_sectors_written), (4, 4));
    assert_eq!((strided.global_sectors_read, strided.global_bytes_read), (32, 128));
    assert_eq!(one.global_sectors_read, 1);
}

#[test]
fn fresh_memory_and_fresh_registers_are_nan() {
    let out =
        over("mad.wide.u32 %rd4, %r4, 4, %rd2; st.global.u32 [%rd4], %r40;", "", &[0; 4]).unwrap();
    assert!(f32::from_bits(out[0]).is_nan());
    assert!(evaluate("mov.b32 %d, %a;", &[[3, 0, 0]]) == [3]);
}
