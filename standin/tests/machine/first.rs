//! One small kernel from its text to its result.

use shoal_standin::{FaultKind, Launch, Memory, Module, Options, launch};

use super::kit::{Numbers, TILE};

/// c[i] = a[i] + b[i] for i below n.
const ADD: &str = "
.version 8.7
.target sm_89
.address_size 64
.visible .entry add(
    .param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n
)
.maxntid 256, 1, 1
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<11>;
    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    ld.param.u64 %rd3, [c];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra $L_end;
    cvta.to.global.u64 %rd4, %rd1;
    mul.wide.s32 %rd5, %r5, 4;
    add.s64 %rd6, %rd4, %rd5;
    ld.global.f32 %f1, [%rd6];
    add.s64 %rd7, %rd2, %rd5;
    ld.global.f32 %f2, [%rd7];
    add.rn.f32 %f3, %f1, %f2;
    add.s64 %rd8, %rd3, %rd5;
    st.global.f32 [%rd8], %f3;
$L_end:
    ret;
}
";

fn params(pointers: [u64; 3], n: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = pointers.iter().flat_map(|pointer| pointer.to_le_bytes()).collect();
    bytes.extend(n.to_le_bytes());
    bytes
}

#[test]
fn a_kernel_is_loaded_and_runs_over_a_grid() {
    let module = Module::load(ADD).unwrap();
    assert_eq!((module.target(), module.version()), ("sm_89", (8, 7)));
    let kernel = module.entry("add").unwrap();
    assert_eq!((kernel.param_bytes(), kernel.max_threads()), (28, Some(256)));
    assert!(module.entry("sub").is_none() && module.entries().count() == 1);

    let memory = Memory::new();
    let n = 1000;
    let [a, b, c] = [0; 3].map(|_: i32| memory.allocate(4 * n));
    for i in 0..n {
        memory.write(a + 4 * i as u64, &(i as f32).to_le_bytes()).unwrap();
        memory.write(b + 4 * i as u64, &(0.5f32).to_le_bytes()).unwrap();
    }
    let params = params([a, b, c], n as u32);
    let options = Options::default();
    let grid = Launch {
        grid: [4, 1, 1],
        block: [256, 1, 1],
        dynamic_shared: 0,
        params: &params,
        options: &options,
    };
    let stats = launch(kernel, &memory, &grid).unwrap();
    let mut sum = [0; 4];
    for i in 0..n {
        memory.read(c + 4 * i as u64, &mut sum).unwrap();
        assert_eq!(f32::from_le_bytes(sum).to_bits(), (i as f32 + 0.5).to_bits());
    }
    assert_eq!((stats.global_bytes_read, stats.global_bytes_written), (8000, 4000));
    assert_eq!((stats.global_sectors_read, stats.count("ld.global")), (250, 64));

    memory.free(b).unwrap();
    let fault = launch(kernel, &memory, &grid).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UseAfterFree);
    let place = fault.place.as_deref().unwrap();
    assert_eq!((place.kernel.as_str(), place.text.as_str()), ("add", "ld.global.f32 %f2, [%rd7];"));
    assert!(fault.to_string().contains("PTX line"), "{fault}");

    let wide = Launch { block: [512, 1, 1], ..grid };
    assert_eq!(launch(kernel, &memory, &wide).unwrap_err().kind, FaultKind::Launch);
}

#[test]
fn an_unknown_instruction_is_refused_with_its_line() {
    let text = ADD.replace("add.rn.f32", "frobnicate.f32");
    let error = Module::load(&text).unwrap_err();
    assert_eq!(error.line, 30);
    assert!(error.to_string().contains("frobnicate.f32"), "{error}");
}

/// Cuts, doubles or garbles a stretch of a text.
fn damaged(text: &str, numbers: &mut Numbers) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=numbers.below(3) {
        let start = numbers.below(bytes.len() as u64) as usize;
        let end = (start + numbers.below(40) as usize).min(bytes.len());
        match numbers.below(4) {
            0 => drop(bytes.drain(start..end)),
            1 => bytes
                .splice(
                    start..start,
                    text.as_bytes()[start.min(text.len() - 1)..].iter().take(30).copied(),
                )
                .for_each(drop),
            2 => bytes[start..end]
                .iter_mut()
                .for_each(|byte| *byte = b"{}[];,.%@!:0f r"[*byte as usize % 15]),
            _ => bytes.truncate(end.max(start)),
        }
        if bytes.is_empty() {
            bytes.push(b'.');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn damaged_text_is_an_error_or_a_kernel_but_never_a_panic() {
    let mut numbers = Numbers(21);
    let (mut loaded, mut refused) = (0, 0);
    let memory = Memory::new();
    let buffer = memory.allocate(4096);
    let params = params([buffer; 3], 16);
    let options = Options { steps_max: 20_000, threads: 1, ..Options::default() };
    for i in 0..1500 {
        // The small text also runs; the large one has every kind of instruction.
        let is_small = i % 3 != 0;
        let text = damaged(if is_small { ADD } else { TILE }, &mut numbers);
        let Ok(module) = Module::load(&text) else {
            refused += 1;
            continue;
        };
        loaded += 1;
        if let (true, Some(kernel)) = (is_small, module.entries().next()) {
            let grid = Launch {
                grid: [2, 1, 1],
                block: [64, 1, 1],
                dynamic_shared: 0,
                params: &params,
                options: &options,
            };
            // Any outcome but a panic will do.
            drop(launch(kernel, &memory, &grid));
        }
    }
    assert!(loaded > 30 && refused > 300, "{loaded} loaded, {refused} refused");
}
