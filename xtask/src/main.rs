//! The project's own commands; `cargo xtask` lists them.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    anyhow::bail!("no command yet")
}
