//! Runs a decoder's body over its examples and over seeded mutations of them, and says what happened.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, Once, OnceLock, RwLock};
use std::time::Duration;

use rand::RngExt;

use super::allocations::{Scope, most_during};
use super::mutate::Mutator;

/// An input that takes longer than this hangs.
const HANG: Duration = Duration::from_secs(60);
/// Different failures that are told.
const FAILURES_TOLD: usize = 12;

/// Gives inputs made of an example to a visitor.
pub type Sweep = fn(&[u8], &mut dyn FnMut(Vec<u8>));

/// Something that takes bytes from strangers.
pub struct Decoder {
    /// Its name, also that of its fuzz target.
    pub name: &'static str,
    /// What takes the bytes.
    pub body: fn(&[u8]),
    /// Good inputs, made by the encoders.
    pub examples: fn() -> Vec<Vec<u8>>,
    /// Changes an input.
    pub mutate: fn(&mut Mutator, &mut Vec<u8>),
    /// Gives one input after the other in which a field of an example has an extreme value.
    pub sweep: Sweep,
    /// Makes checksums right again, so that what was changed gets further in.
    pub repair: fn(&mut [u8]),
    /// Mutations to run.
    pub inputs: u64,
    /// The most that may be allocated: so many bytes, and so many more for each byte of the input.
    pub bound: (u64, u64),
    /// Whose allocations count.
    pub scope: Scope,
}

/// Panics of the product's own threads.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static HOOK: Once = Once::new();

thread_local! {
    /// Panics of the thread that runs a body.
    static OWN_PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes panics of all threads instead of printing them, while `body` runs.
fn note_panics() {
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let said = info.payload().downcast_ref::<String>().cloned();
            let said = said.or_else(|| info.payload().downcast_ref::<&str>().map(ToString::to_string));
            let told = format!("{place}: {}", said.unwrap_or_default());
            let thread = std::thread::current();
            match thread.name() {
                Some(name) if name.starts_with("body ") => OWN_PANICS.with_borrow_mut(|panics| panics.push(told)),
                // A test's own thread: modules are in its name.
                Some(name) if name.contains("::") => usual(info),
                _ => PANICS.lock().unwrap().push(told),
            }
        }));
    });
}

/// The panics since the last call.
pub fn panics() -> Vec<String> {
    note_panics();
    let mut found = OWN_PANICS.with_borrow_mut(std::mem::take);
    found.append(&mut PANICS.lock().unwrap());
    found
}

/// Held for reading by what may run beside others, for writing by what counts the whole process's memory.
fn quiet() -> &'static RwLock<()> {
    static QUIET: OnceLock<RwLock<()>> = OnceLock::new();
    QUIET.get_or_init(RwLock::default)
}

/// Runs `work` at a time when nobody counts the memory of the whole process.
pub fn beside_others<T>(work: impl FnOnce() -> T) -> T {
    let _guard = quiet().read().unwrap_or_else(std::sync::PoisonError::into_inner);
    work()
}

struct Watched {
    input: Mutex<(u64, Vec<u8>)>,
    ended: Mutex<bool>,
    end: Condvar,
}

/// Ends the process, showing the input, when one takes too long: a hang cannot be ended in any other way.
fn watch(name: &'static str) -> Arc<Watched> {
    let watched = Arc::new(Watched { input: Mutex::default(), ended: Mutex::new(false), end: Condvar::new() });
    let watching = watched.clone();
    std::thread::spawn(move || {
        let mut seen = u64::MAX;
        loop {
            let ended = watching.ended.lock().unwrap();
            let (ended, timeout) = watching.end.wait_timeout_while(ended, HANG, |ended| !*ended).unwrap();
            if *ended {
                return;
            }
            let (number, input) = watching.input.lock().unwrap().clone();
            if timeout.timed_out() && number == seen {
                eprintln!("{name}: input {number} hangs: {}", shown(&input));
                std::process::abort();
            }
            seen = number;
        }
    });
    watched
}

fn shown(input: &[u8]) -> String {
    match std::str::from_utf8(input) {
        Ok(text) if input.len() < 6000 => text.escape_debug().to_string(),
        _ => {
            let hex: String = input.iter().take(3000).map(|byte| format!("{byte:02x}")).collect();
            format!("{} bytes {hex}", input.len())
        }
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Inputs run.
    pub inputs: u64,
    /// The most bytes allocated for one of them.
    pub most: u64,
    failures: BTreeMap<String, String>,
}

/// Runs a decoder.
///
/// # Panics
/// If any input panicked, or allocated more than the bound.
pub fn run(decoder: &'static Decoder) {
    note_panics();
    let work = move || {
        let guards = match decoder.scope {
            Scope::Thread => (Some(quiet().read()), None),
            Scope::Process => (None, Some(quiet().write())),
        };
        let outcome = run_all(decoder);
        drop(guards);
        outcome
    };
    let thread = std::thread::Builder::new().name(format!("body {}", decoder.name)).stack_size(8 << 20);
    let outcome = thread.spawn(work).unwrap().join().unwrap();
    println!("{}: {} inputs, at most {} bytes allocated for one", decoder.name, outcome.inputs, outcome.most);
    let told: Vec<String> =
        outcome.failures.iter().take(FAILURES_TOLD).map(|(what, input)| format!("{what}\n  {input}")).collect();
    assert!(told.is_empty(), "{}: {} kinds of failure\n{}", decoder.name, outcome.failures.len(), told.join("\n"));
    assert!(outcome.inputs >= decoder.inputs, "not all inputs ran");
}

fn run_all(decoder: &'static Decoder) -> Outcome {
    let seed: u64 = std::env::var("VARVE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let examples = (decoder.examples)();
    let watched = watch(decoder.name);
    let mut outcome = Outcome::default();
    for example in &examples {
        one(decoder, example, &watched, &mut outcome);
        (decoder.sweep)(example, &mut |mut input| {
            (decoder.repair)(&mut input);
            if outcome.failures.len() < FAILURES_TOLD {
                one(decoder, &input, &watched, &mut outcome);
            }
        });
    }
    let wanted = outcome.inputs + decoder.inputs;
    let mut mutator = Mutator::new(seed ^ u64::from(crc32c::crc32c(decoder.name.as_bytes())), examples);
    while outcome.inputs < wanted && outcome.failures.len() < FAILURES_TOLD {
        let mut input = mutator.example();
        (decoder.mutate)(&mut mutator, &mut input);
        if mutator.random.random() {
            (decoder.repair)(&mut input);
        }
        one(decoder, &input, &watched, &mut outcome);
    }
    *watched.ended.lock().unwrap() = true;
    watched.end.notify_all();
    outcome
}

fn one(decoder: &'static Decoder, input: &[u8], watched: &Watched, outcome: &mut Outcome) {
    *watched.input.lock().unwrap() = (outcome.inputs, input.to_vec());
    let (result, most) = most_during(decoder.scope, || catch_unwind(AssertUnwindSafe(|| (decoder.body)(input))));
    outcome.inputs += 1;
    outcome.most = outcome.most.max(most);
    let bound = decoder.bound.0 + decoder.bound.1 * input.len() as u64;
    let mut told = panics();
    if result.is_err() && told.is_empty() {
        told.push("it panicked".to_owned());
    }
    if most > bound {
        told.push(format!("more than {bound} bytes were allocated"));
    }
    for what in told {
        let input = format!("input {}, {most} bytes allocated: {}", outcome.inputs - 1, shown(input));
        outcome.failures.entry(what).or_insert(input);
    }
}
