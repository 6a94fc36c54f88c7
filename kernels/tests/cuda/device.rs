//! The device itself: bytes go and come, streams are ordered by events only, and what is wrong is said.

use shoal_kernels::cuda::{Address, Device, DeviceError, Grid};

use super::gpu::{Case, Gpu, same_bytes};

/// Adds one to each of `n` words, in a way that takes a while: the order of streams shows.
const COUNT: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry count(.param .u64 count_x, .param .u32 count_n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [count_x];
    ld.param.u32 %r1, [count_n];
    cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r2, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r2, %r1;
    @%p1 bra END;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r5, [%rd3];
    add.s32 %r5, %r5, 1;
    st.global.u32 [%rd3], %r5;
END:
    ret;
}
";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("device: bytes go and come", bytes_go_and_come),
        Case::new("device: an event orders two streams", an_event_orders_two_streams),
        Case::new("device: no such GPU", no_such_gpu),
        Case::new("device: out of memory", out_of_memory),
        Case::new("device: PTX that is none", ptx_that_is_none),
        Case::new("device: a kernel that takes something else", takes_something_else),
        Case::new("device: more shared memory than there is", too_much_shared_memory),
        Case::new("device: a grid of nothing", a_grid_of_nothing),
        Case::new("device: time passes", time_passes),
    ]
}

/// Words that all hold one number.
fn words(n: usize, value: u32) -> Vec<u8> {
    value.to_le_bytes().repeat(n)
}

fn bytes_go_and_come(gpu: &Gpu) -> Result<(), String> {
    let bytes: Vec<u8> = (0..1000_u32).map(|i| (i * 7 + gpu.seed as u32) as u8).collect();
    let buffer = gpu.upload(&bytes);
    same_bytes("all", &gpu.download(buffer.all()), &bytes)?;
    same_bytes("a part", &gpu.download(buffer.slice(3..77)), &bytes[3..77])?;
    gpu.stream.fill(buffer.slice(10..20), 9).unwrap();
    gpu.stream.copy(buffer.slice(500..510), buffer.slice(10..20)).unwrap();
    gpu.stream.upload(buffer.slice(0..2), &[1, 2]).unwrap();
    let mut want = bytes;
    want[10..20].fill(9);
    want[500..510].fill(9);
    want[..2].copy_from_slice(&[1, 2]);
    same_bytes("changed", &gpu.download(buffer.all()), &want)?;
    let empty = gpu.device.buffer("nothing", 0).unwrap();
    same_bytes("nothing", &gpu.download(empty.all()), &[])
}

fn an_event_orders_two_streams(gpu: &Gpu) -> Result<(), String> {
    const N: usize = 1 << 14;
    let module = gpu.device.load_ptx("count", COUNT).map_err(|error| error.to_string())?;
    let count = module.function::<(Address, u32)>("count", 0).unwrap();
    let other = gpu.device.stream().unwrap();
    let event = gpu.device.event().unwrap();
    let x = gpu.upload(&words(N, 5));
    let grid = Grid::line(N.div_ceil(256) as u32, 256);
    for _ in 0..8 {
        for (stream, next) in [(&gpu.stream, &other), (&other, &gpu.stream)] {
            count_on(&count, stream, grid, x.all().address(), N as u32);
            stream.record(&event).unwrap();
            next.wait(&event).unwrap();
        }
    }
    event.synchronise().unwrap();
    same_bytes("counts", &gpu.download(x.all()), &words(N, 5 + 16))
}

#[expect(unsafe_code, reason = "launches a kernel")]
fn count_on(
    count: &shoal_kernels::cuda::Function<(Address, u32)>,
    stream: &shoal_kernels::cuda::Stream,
    grid: Grid,
    x: Address,
    n: u32,
) {
    // SAFETY: the kernel writes n words from x on, which the callers have.
    unsafe { count.launch(stream, grid, (x, n)) }.unwrap();
}

/// The error, or what there was instead.
fn expect_error<T>(result: Result<T, DeviceError>, words: &[&str]) -> Result<DeviceError, String> {
    let Err(error) = result else { return Err(format!("no error, want {words:?}")) };
    let text = error.to_string();
    match words.iter().find(|word| !text.contains(*word)) {
        None => Ok(error),
        Some(word) => Err(format!("{text:?} does not say {word:?}")),
    }
}

fn no_such_gpu(gpu: &Gpu) -> Result<(), String> {
    let count = Device::count().unwrap();
    if gpu.device.ordinal() >= count {
        return Err(format!("{count} GPUs, and number {} is open", gpu.device.ordinal()));
    }
    let says = format!("asked for {count}, this machine has {count}");
    expect_error(Device::open(count), &[&says]).map(drop)
}

fn out_of_memory(gpu: &Gpu) -> Result<(), String> {
    let (free, total) = gpu.device.memory().unwrap();
    if free > total {
        return Err(format!("{free} bytes free of {total}"));
    }
    let bytes = 2 * total;
    let error = expect_error(
        gpu.device.buffer("the expert weights", bytes),
        &["the expert weights", &bytes.to_string(), "free"],
    )?;
    if matches!(error, DeviceError::OutOfMemory { .. }) {
        Ok(())
    } else {
        Err(format!("{error:?}"))
    }
}

fn ptx_that_is_none(gpu: &Gpu) -> Result<(), String> {
    let text = COUNT.replace("mad.lo.s32", "madd.lo.s32");
    expect_error(gpu.device.load_ptx("a changed kernel", &text), &["a changed kernel"])?;
    let module = gpu.device.load_ptx("count", COUNT).unwrap();
    expect_error(module.function::<(Address,)>("no_such", 0), &["no kernel no_such"]).map(drop)
}

fn takes_something_else(gpu: &Gpu) -> Result<(), String> {
    let module = gpu.device.load_ptx("count", COUNT).unwrap();
    let says = ["count", "takes (u64, u32)"];
    expect_error(module.function::<(u32, Address)>("count", 0), &says)?;
    expect_error(module.function::<(Address, f32)>("count", 0), &says)?;
    expect_error(module.function::<(Address, u32, u32)>("count", 0), &says)?;
    expect_error(module.function::<(Address,)>("count", 0), &says).map(drop)
}

fn too_much_shared_memory(gpu: &Gpu) -> Result<(), String> {
    let module = gpu.device.load_ptx("count", COUNT).unwrap();
    let limit = gpu.device.properties().shared_bytes_max;
    let all = module.function::<(Address, u32)>("count", limit).map_err(|e| e.to_string())?;
    let x = gpu.upload(&words(4, 1));
    count_on(&all, &gpu.stream, Grid::line(1, 32), x.all().address(), 4);
    same_bytes("with all of it", &gpu.download(x.all()), &words(4, 2))?;
    let says = [(limit + 1).to_string(), limit.to_string()];
    expect_error(module.function::<(Address, u32)>("count", limit + 1), &[&says[0], &says[1]])
        .map(drop)
}

fn a_grid_of_nothing(gpu: &Gpu) -> Result<(), String> {
    let module = gpu.device.load_ptx("count", COUNT).unwrap();
    let count = module.function::<(Address, u32)>("count", 0).unwrap();
    let x = gpu.upload(&words(4, 1));
    count_on(&count, &gpu.stream, Grid::line(0, 256), x.all().address(), 4);
    same_bytes("untouched", &gpu.download(x.all()), &words(4, 1))
}

fn time_passes(gpu: &Gpu) -> Result<(), String> {
    let (start, end) = (gpu.device.timing_event().unwrap(), gpu.device.timing_event().unwrap());
    gpu.stream.record(&start).unwrap();
    gpu.stream.record(&end).unwrap();
    end.synchronise().unwrap();
    let ms = end.ms_since(&start).map_err(|error| error.to_string())?;
    if ms >= 0.0 { Ok(()) } else { Err(format!("{ms} ms between two marks")) }
}
