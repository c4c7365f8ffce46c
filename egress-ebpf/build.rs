//! How the kernel programs are linked. Says nothing when the crate is looked at for the host, as editors do.

use std::{env, process};

fn main() {
    // The upgrade test needs the same programs under other tags; see `EGRESS_EBPF_VARIANT` in egress-userspace.
    println!("cargo:rerun-if-env-changed=EGRESS_EBPF_VARIANT");
    let variant = env::var("EGRESS_EBPF_VARIANT").unwrap_or_else(|_| "0".to_owned());
    if variant.parse::<u32>().is_err() {
        eprintln!("EGRESS_EBPF_VARIANT is `{variant}`, not a number");
        process::exit(1);
    }
    println!("cargo:rustc-env=EGRESS_EBPF_VARIANT={variant}");

    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // Type information: map dumps with names, and what the kernel asks of BTF maps.
        println!("cargo:rustc-link-arg-bins=--btf");
        // 32-bit operations, and words read where the packet has them: a parse and look-up in 27 instructions
        // instead of 72.
        println!("cargo:rustc-link-arg-bins=--cpu-features=+alu32,+allows-misaligned-mem-access");
    }
}
