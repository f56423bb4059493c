//! Makes the driver that the environment variable `KLOOP_DRIVER` asks for.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::driver::{Choice, Config, Driver};
use crate::py::{Exc, Gil, Obj, Result, ToObj};

const VARIABLE: &str = "KLOOP_DRIVER";

/// The process has been told why it runs on epoll: once, in whichever interpreter came first.
static WARNED: AtomicBool = AtomicBool::new(false);

/// What `os.environ` says now. `ValueError` for what is no choice.
pub fn chosen_driver(gil: Gil) -> Result<Choice> {
    let environ = Obj::import(gil, c"os")?.get(c"environ")?;
    let value = environ.get(c"get")?.call([&VARIABLE.to_obj(gil)?, &"".to_obj(gil)?])?;
    match value.to_str()? {
        "" => Ok(Choice::default()),
        text => text.parse().map_err(|()| {
            let names = Choice::NAMES.map(|(name, _)| format!("'{name}'")).join(", ");
            let text = value.repr();
            Exc::value_error(gil, format!("{VARIABLE} must be one of {names}, not {text}"))
        }),
    }
}

/// A driver for the calling thread. `OSError`, with cause and remedy, where there can be none;
/// `RuntimeWarning`, the first time, where epoll has to stand in.
pub fn open_driver<T>(gil: Gil, choice: Choice, config: &Config) -> Result<Driver<T>> {
    let driver = Driver::new(config, choice)
        .map_err(|error| Exc::os_with_text(gil, error.errno(), &error.to_string()))?;
    if let Some(cause) = driver.fallback()
        && !WARNED.load(Ordering::Relaxed)
    {
        let warn = Obj::import(gil, c"kloop.loop")?.get(c"_warn_of_fallback")?;
        warn.call([&cause.to_string().to_obj(gil)?])?;
        // Not where the warning became an exception: that was no loop yet.
        WARNED.store(true, Ordering::Relaxed);
    }
    Ok(driver)
}
