// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the programs share: running cases, test data, comparing pictures.
//!
//! A program prints a line for each case, `ok NAME`, `ok NAME RATE a second`, `skip NAME: REASON`
//! or `not ok NAME: REASON`, which `virtgpu-compare` reads, and returns 1 if a case has failed.

use std::process::ExitCode;

/// How a case ended that did not fail.
#[derive(Debug)]
pub enum Done {
    /// All was as expected.
    Passed,
    /// So it was, and something was done this often a second.
    Rate(f64),
    /// The renderer cannot do it, for the reason that is given.
    Skipped(String),
}

/// What a case returns: on failure, what was wrong.
pub type Result<T = Done> = std::result::Result<T, String>;

/// A case and its name; `T` is the connection to the renderer.
pub type Case<T> = (&'static str, fn(&T) -> Result);

/// Runs all cases, and prints how they end.
pub fn run<T>(connection: &T, cases: &[Case<T>]) -> ExitCode {
    let mut failed = false;
    for (name, case) in cases {
        match case(connection) {
            Ok(Done::Passed) => println!("ok {name}"),
            Ok(Done::Rate(rate)) => println!("ok {name} {rate:.1} a second"),
            Ok(Done::Skipped(reason)) => println!("skip {name}: {reason}"),
            Err(reason) => {
                failed = true;
                println!("not ok {name}: {reason}");
            }
        }
    }
    ExitCode::from(u8::from(failed))
}

/// One step of a linear congruential generator, which shaders can do too.
#[must_use]
pub fn step(value: u32) -> u32 {
    value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
}

/// `count` words without a pattern, the same each time.
#[must_use]
pub fn words(seed: u32, count: usize) -> Vec<u32> {
    let mut value = seed;
    (0..count)
        .map(|_| {
            value = step(value);
            // The low bits of such a generator are poor.
            value.rotate_right(16)
        })
        .collect()
}

/// The bytes of words, as they are in memory.
#[must_use]
pub fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The words of bytes, as they are in memory.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect()
}

/// Red, green, blue and alpha of the picture that the fragment shaders paint, as the bytes of a
/// pixel.
#[must_use]
pub fn pattern(x: u32, y: u32) -> [u8; 4] {
    [
        (x & 255) as u8,
        (y & 255) as u8,
        ((x * 7 + y * 13) & 255) as u8,
        255,
    ]
}

/// Compares words one by one.
///
/// # Errors
///
/// The first one that is wrong, and how many there are.
pub fn same(found: &[u32], expected: impl Fn(usize) -> u32) -> Result<()> {
    let mut wrong = found
        .iter()
        .enumerate()
        .filter(|&(index, value)| *value != expected(index));
    match wrong.next() {
        None => Ok(()),
        Some((index, value)) => Err(format!(
            "word {index} is {value:#x}, not {:#x}, and {} more of {} are wrong",
            expected(index),
            wrong.count(),
            found.len()
        )),
    }
}

/// Compares a picture of RGBA bytes, `width` pixels in a row.
///
/// # Errors
///
/// The first pixel that is wrong, and how many there are.
pub fn same_picture(
    found: &[u8],
    width: usize,
    expected: impl Fn(u32, u32) -> [u8; 4],
) -> Result<()> {
    let place = |index: usize| ((index % width) as u32, (index / width) as u32);
    let mut wrong = found.chunks_exact(4).enumerate().filter(|&(index, pixel)| {
        let (x, y) = place(index);
        pixel != expected(x, y)
    });
    match wrong.next() {
        None => Ok(()),
        Some((index, pixel)) => {
            let (x, y) = place(index);
            Err(format!(
                "pixel {x},{y} is {pixel:?}, not {:?}, and {} more of {} are wrong",
                expected(x, y),
                wrong.count(),
                found.len() / 4
            ))
        }
    }
}
