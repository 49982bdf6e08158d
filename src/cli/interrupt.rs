//! Signals that stop a command.

use castra_engine::cancel::Cancel;
use castra_engine::host::IgnoredSignals;

/// Makes the first Ctrl-C, SIGTERM or SIGHUP cancel the command in an orderly way, and the second
/// one end the process at once.
pub(super) fn install_signal_handlers(cancel: &Cancel) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    // What is ignored stays ignored, as `nohup` wants it.
    let ignored = IgnoredSignals::of_process();
    let heeded = |signal: &i32| !ignored.contains(*signal);
    for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(heeded) {
        // Registration fails only for signals that cannot be caught, and these can.
        let _ =
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, cancel.flag());
        let _ = signal_hook::flag::register(signal, cancel.flag());
    }
}
