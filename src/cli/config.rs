//! `shoal config`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::steering::Form;

const VIEW_EXAMPLES: &str = "\
Examples:
  shoal config view
  shoal config view --show-origin
  shoal config view --show-origin -- worker --name attic
  shoal config view -o json | jq '.[] | select(.key == \"cluster\").value'

Of flag, variable, ./shoal.yaml (or one in a directory above), ~/.config/shoal/config.yaml and default the first that
says something counts. Secrets are never shown. Exit codes: 0 done, 2 something is set wrongly.";

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show every setting, or those that a verb would have
    #[command(after_help = VIEW_EXAMPLES)]
    View(View),
}

#[derive(Debug, Args)]
pub(crate) struct View {
    /// Also where each comes from: a flag, a variable, a file with its line, or the default
    #[arg(long)]
    pub show_origin: bool,
    /// How to show it
    #[arg(short, long, default_value = "table")]
    pub output: Form,
    /// A verb with its flags: what it would be told
    #[arg(last = true, value_name = "VERB")]
    pub command: Vec<OsString>,
}
