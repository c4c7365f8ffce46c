//! The corpus and all findings again, without a fuzzer.

use std::fs;
use std::path::{Path, PathBuf};

mod properties;

/// Tells which input a panic is about.
struct Blame<'a>(&'a str);

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("it was {}", self.0);
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

#[test]
fn the_corpus_keeps_its_properties() {
    let text = fs::read_to_string(folder().join("corpus.txt")).unwrap();
    for line in text.lines() {
        let _blame = Blame(line);
        let (pairs, _) = line.as_bytes().as_chunks::<2>();
        let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        let input: Vec<u8> = pairs.iter().map(|pair| byte(pair)).collect();
        properties::check(&input);
    }
    assert!(text.lines().count() > 20, "a corpus is committed");
}

#[test]
fn findings_stay_mended() {
    let Ok(files) = fs::read_dir(folder().join("findings")) else {
        return;
    };
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        println!("{}", path.display());
        properties::check(&fs::read(path).unwrap());
    }
}
