//! The arguments of `paravane decode`.

use clap::Args;

use super::Values;

/// Arguments of `decode descriptor`.
#[derive(Debug, Args)]
pub struct DescriptorArgs {
    /// What every kind of value has.
    #[command(flatten)]
    pub values: Values,
    /// Read pairs of quadwords as 16-byte descriptors, whatever the second one holds
    #[arg(long)]
    pub wide: bool,
}
