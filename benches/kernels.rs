//! GMAC/s of the products and the depthwise convolution on one thread, by shape, scheme, direction.
//!
//! `cargo bench --bench kernels [-- WORD]` runs the lines that contain WORD. Each figure is the best
//! of several timings, so that it shows the kernel rather than the machine's other work.

use offshoot::Scheme;
use offshoot::testing::kernels::{
    Activation, ConvGeometry, Packed, depthwise, depthwise_input_gradient, kernel_name, product,
    product_transposed,
};
use std::time::{Duration, Instant};

/// (name, M, in_features, out_features)
const SHAPES: [(&str, usize, usize, usize); 11] = [
    ("minilm attention", 64, 384, 384),
    ("minilm up", 64, 384, 1536),
    ("minilm down", 64, 1536, 384),
    ("one token", 1, 384, 384),
    ("one token up", 1, 384, 1536),
    ("one token large", 1, 4096, 4096),
    ("efficientnet stem", 12544, 32, 16),
    ("efficientnet middle", 784, 240, 40),
    ("efficientnet late", 49, 192, 1152),
    ("lora a", 64, 384, 8),
    ("lora b", 64, 8, 384),
];

/// (name, side, channels, kernel, stride)
const DEPTHWISE: [(&str, usize, usize, usize, usize); 5] = [
    ("depthwise 112 s1", 112, 32, 3, 1),
    ("depthwise 112 s2", 112, 96, 3, 2),
    ("depthwise 28 k5", 28, 240, 5, 1),
    ("depthwise 14 k3", 14, 480, 3, 1),
    ("depthwise 7 k5", 7, 1152, 5, 1),
];

fn main() {
    let word = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    println!("kernels: {}", kernel_name());
    for (name, m, cols, rows) in SHAPES {
        for scheme in [Scheme::F32, Scheme::F16, Scheme::Q8, Scheme::Q8Wide, Scheme::Q4] {
            let packed = match Packed::pack(scheme, rows, cols, &values(rows * cols)) {
                Ok(packed) => packed,
                Err(error) => return eprintln!("{error}"),
            };
            let (x, mut y) = (values(m * cols), vec![0.0; m * rows]);
            let (dy, mut dx) = (values(m * rows), vec![0.0; m * cols]);
            let what = format!("{name} {m}x{cols}x{rows} {}", scheme.name());
            if !what.contains(&word) {
                continue;
            }
            let macs = m * cols * rows;
            let forward = rate(macs, || product(packed.view(), &x, None, &mut y));
            let back = rate(macs, || product_transposed(packed.view(), &dy, &mut dx));
            println!("{what:38} forward {forward:6.1}  transposed {back:6.1} GMAC/s");
        }
    }
    for (name, side, channels, kernel, stride) in DEPTHWISE {
        let pad = kernel / 2;
        let g = ConvGeometry {
            batch: 1,
            height: side,
            width: side,
            channels,
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            pads: [pad; 4],
        };
        let what = format!("{name} c{channels}");
        if !what.contains(&word) {
            continue;
        }
        let (x, w, bias) =
            (values(side * side * channels), values(g.patch_len()), values(channels));
        let (mut dx, mut y) = (x.clone(), values(g.pixels() * channels));
        let macs = g.pixels() * g.patch_len();
        let forward =
            rate(macs, || depthwise(&g, &w, Some(&bias), Activation::Identity, &x, &mut y));
        let back = rate(macs, || depthwise_input_gradient(&g, &w, &y, &mut dx));
        println!("{what:38} forward {forward:6.1}  gradient   {back:6.1} GMAC/s");
    }
}

/// Billions of multiply-adds a second, from the fastest of the runs of about 0.2 s.
fn rate(macs: usize, mut run: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while start.elapsed() < Duration::from_millis(200) {
        let one = Instant::now();
        let times = (1_000_000 / macs).max(1);
        for _ in 0..times {
            run();
        }
        best = best.min(one.elapsed() / times as u32);
    }
    macs as f64 / best.as_nanos().max(1) as f64
}

/// Values in -1..1.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 7 & 1023) as f32 / 512.0 - 1.0).collect()
}
