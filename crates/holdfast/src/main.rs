//! `holdfast`. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_program::main()
}
