//! `holdfast` with faults on demand: `--fault-plan FILE`. For tests; built only with the feature `faults`.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_program::main()
}
