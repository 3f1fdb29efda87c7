//! Round numbers along an axis.

/// A tick: where, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// In the units of the data.
    pub at: f64,
    /// Empty where only its line is drawn.
    pub label: String,
}

/// About `wanted` ticks at multiples of 1, 2 or 5 times a power of ten.
pub fn linear(low: f64, high: f64, wanted: usize) -> Vec<Tick> {
    let rough = (high - low) / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    // The nearest of them, as factors go.
    let step = match rough / power {
        r if r < 2f64.sqrt() => power,
        r if r < 10f64.sqrt() => 2.0 * power,
        r if r < 50f64.sqrt() => 5.0 * power,
        _ => 10.0 * power,
    };
    let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
    // Powers of ten have no digits left where numbers are that small.
    if !(first.is_finite() && last.is_finite() && step > 1e-290) || last - first > 1000.0 {
        return Vec::new();
    }
    let most = low.abs().max(high.abs());
    let count = (last - first) as usize;
    (0..=count).map(|i| first + i as f64).map(|i| Tick { at: i * step, label: label(i * step, step, most) }).collect()
}

/// Ticks of a logarithmic axis: powers of ten, between them 2 and 5 where there are few; the lines of the other digits have no labels.
pub fn logarithmic(low: f64, high: f64, wanted: usize) -> Vec<Tick> {
    if !(low > 0.0 && high < f64::INFINITY) {
        return Vec::new();
    }
    let decades = high.log10() - low.log10();
    if decades < 0.7 {
        return linear(low, high, wanted);
    }
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let every = (decades / wanted.max(1) as f64 - 0.2).ceil().max(1.0) as i32;
    let plain = decades <= 4.0;
    let inside = |v: f64| v >= low * (1.0 - 1e-9) && v <= high * (1.0 + 1e-9);
    let mut ticks = Vec::new();
    for power in first..=last {
        for digit in 1..10 {
            let at = f64::from(digit) * 10f64.powi(power);
            let says = match digit {
                1 => power.rem_euclid(every) == 0,
                2 | 5 => decades < 2.2,
                _ => false,
            };
            // Lines between the powers only where they do not crowd.
            if inside(at) && (says || digit == 1 || decades <= 8.0) {
                let label = if says { power_label(digit, power, plain) } else { String::new() };
                ticks.push(Tick { at, label });
            }
        }
    }
    ticks
}

/// `digit` times ten to `power`; written out, where it is short and all are.
fn power_label(digit: i32, power: i32, plain: bool) -> String {
    match power {
        0..=1 => thousands(f64::from(digit) * 10f64.powi(power), 0, false),
        2..=3 if plain => thousands(f64::from(digit) * 10f64.powi(power), 0, false),
        -3..=-1 if plain => format!("{:.*}", power.unsigned_abs() as usize, f64::from(digit) * 10f64.powi(power)),
        _ if digit == 1 => format!("10{}", superscript(power)),
        _ => format!("{digit}×10{}", superscript(power)),
    }
}

/// A number at steps of `step`, where the largest is `most`.
fn label(v: f64, step: f64, most: f64) -> String {
    if v == 0.0 {
        return "0".into();
    }
    let digits_of_step = step.log10().floor() as i32;
    if !(1e-3..1e6).contains(&most) {
        let power = most.log10().floor() as i32;
        let decimals = usize::try_from(power - digits_of_step).unwrap_or(0);
        let scaled = v / 10f64.powi(power);
        return format!("{scaled:.decimals$}×10{}", superscript(power)).replace('-', "−");
    }
    thousands(v, usize::try_from(-digits_of_step).unwrap_or(0), most >= 1e4)
}

/// With commas between thousands, if asked for.
fn thousands(v: f64, decimals: usize, commas: bool) -> String {
    let text = format!("{:.decimals$}", v.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::from(if v < 0.0 { "−" } else { "" });
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && commas && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

fn superscript(power: i32) -> String {
    let raised = |c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32(0x2070 + (c as u32 - '0' as u32)).unwrap_or(c),
    };
    power.to_string().chars().map(raised).collect()
}

/// A number as a person would write it in three digits.
pub fn short(v: f64) -> String {
    if v == 0.0 || !v.is_finite() {
        return format!("{v}");
    }
    let power = v.abs().log10().floor() as i32;
    if !(-4..6).contains(&power) {
        let scaled = format!("{:.2}", v / 10f64.powi(power));
        return format!("{}×10{}", scaled.trim_end_matches('0').trim_end_matches('.'), superscript(power));
    }
    let text = format!("{v:.*}", usize::try_from(2 - power).unwrap_or(0));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|t| t.label.as_str()).filter(|l| !l.is_empty()).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(labels(&linear(0.0, 1.0, 5)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&linear(0.13, 0.19, 4)), ["0.14", "0.16", "0.18"]);
        assert_eq!(labels(&linear(0.0, 25600.0, 5)), ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]);
        assert_eq!(labels(&linear(0.0, 15000.0, 3)), ["0", "5,000", "10,000", "15,000"]);
        assert_eq!(labels(&linear(0.0, 8000.0, 3)), ["0", "2000", "4000", "6000", "8000"]);
        assert_eq!(labels(&linear(-2.0, 2.0, 4)), ["−2", "−1", "0", "1", "2"]);
        assert_eq!(labels(&linear(0.0, 4e-7, 4)), ["0", "1×10⁻⁷", "2×10⁻⁷", "3×10⁻⁷", "4×10⁻⁷"]);
        assert_eq!(labels(&linear(0.0, 3e6, 3)), ["0", "1×10⁶", "2×10⁶", "3×10⁶"]);
        assert!(linear(1.0, 1.0, 5).len() <= 1 && linear(f64::NAN, 1.0, 5).is_empty());
    }

    #[test]
    fn logarithmic_ticks_are_powers() {
        assert_eq!(labels(&logarithmic(1e-7, 1e-1, 8)), ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
        assert_eq!(labels(&logarithmic(0.1, 2.0, 6)), ["0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(labels(&logarithmic(2e-5, 3e-4, 6)), ["2×10⁻⁵", "5×10⁻⁵", "10⁻⁴", "2×10⁻⁴"]);
        assert_eq!(labels(&logarithmic(0.11, 0.19, 4)), labels(&linear(0.11, 0.19, 4)));
        assert_eq!(labels(&logarithmic(1.0, 1e12, 5)), ["1", "10³", "10⁶", "10⁹", "10¹²"]);
    }

    #[test]
    fn short_numbers() {
        let of = |v: f64| short(v);
        assert_eq!([of(0.0032), of(1.5), of(123456.0), of(3.2e-5)], ["0.0032", "1.5", "123456", "3.2×10⁻⁵"]);
        assert_eq!([of(0.0), of(1e9), of(0.12345)], ["0", "1×10⁹", "0.123"]);
    }
}
