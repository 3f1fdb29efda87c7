//! The flowers that the program makes.
use ddim_engine::data;

/// Not a check: writes contact sheets to look at, where DDIM_SHEETS names a folder.
#[test]
fn contact_sheets() {
    let Some(dir) = std::env::var_os("DDIM_SHEETS").map(std::path::PathBuf::from) else {
        println!("skipped: DDIM_SHEETS is not set");
        return;
    };
    for (size, columns, rows) in [(8u32, 16u32, 8u32), (32, 16, 10), (128, 8, 6), (256, 4, 3)] {
        let mut sheet = image::RgbImage::new(columns * size, rows * size);
        let mut pixels = vec![0; (columns * rows * size * size * 3) as usize];
        let start = std::time::Instant::now();
        data::render_procedural(0, 0, size as usize, 3, &mut pixels);
        println!("{size}: {} pictures in {:?}", columns * rows, start.elapsed());
        for (i, one) in pixels.chunks_exact((size * size * 3) as usize).enumerate() {
            let one = image::RgbImage::from_raw(size, size, one.to_vec()).expect("length");
            image::imageops::replace(
                &mut sheet,
                &one,
                i64::from(i as u32 % columns * size),
                i64::from(i as u32 / columns * size),
            );
        }
        sheet.save(dir.join(format!("sheet-{size}.png"))).expect("save");
    }
}
