//! varved: the daemon that serves the volumes of a store over NBD.
//!
//! Starts from the edges inwards: settings, store, state directory, fleet, doors; stops in the opposite order. On SIGTERM or
//! SIGINT clients are let go, what is left is uploaded, and every volume is handed back.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use varve::admin::{PurgeTimer, root};
use varve::clean::Goal;
use varve::control::{self, ControlSocket, RemoteDoor};
use varve::error::{Context, Error, Result};
use varve::fleet::{Fleet, FleetExports, FleetService};
use varve::nbd::{self, NbdSettings, Server};
use varve::settings::{DaemonArguments, Places, Prefetch, Settings, SharedSettings, SpaceTarget};
use varve::store;
use varve::volume::state_directory::{self, StateSettings};
use varve::volume::{CLEANING, EngineSettings};

/// The C library keeps what each of many threads has freed: 200 MiB beyond the budgets after one sequential read of a disk
/// (`design/measurements.md`). This one gives it back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long clients may take to leave when the daemon stops.
const CLIENTS_LEAVE: Duration = Duration::from_secs(5);
/// How long uploads may take when the daemon stops; what is left then stays in the logs.
const UPLOADS_END: Duration = Duration::from_secs(60);
/// Segments between two checkpoints: bounds what an attach has to look at.
const SEGMENTS_PER_CHECKPOINT: u64 = 64;

fn main() -> ExitCode {
    let arguments = DaemonArguments::parse();
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("VARVE_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match arguments.resolve(&Places::from_environment()).and_then(|settings| run(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "varved ends");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: &Settings) -> Result<()> {
    let runtime =
        Builder::new_multi_thread().enable_all().thread_name("varve").build().context(|| "cannot start the runtime")?;
    let result = serve(&runtime, settings);
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

fn serve(runtime: &Runtime, settings: &Settings) -> Result<()> {
    let shared_settings = &settings.shared;
    let opened = runtime.block_on(open_store(shared_settings))?;
    let (opened, root) = opened;
    let engine = EngineSettings {
        log_length: settings.log_size,
        segment_age: settings.segment_age,
        segments_per_checkpoint: SEGMENTS_PER_CHECKPOINT,
        cleaning: match settings.space_target {
            SpaceTarget::Off => Goal { percent: u64::MAX, ..CLEANING },
            SpaceTarget::Percent(percent) => Goal { percent: u64::from(percent), ..CLEANING },
        },
        prefetch: settings.prefetch == Prefetch::On,
        control: settings.control_socket.display().to_string(),
    };
    let state = StateSettings {
        path: shared_settings.state.clone(),
        cache_size: settings.cache_size,
        memory_size: settings.memory_size,
        engine,
    };
    let (shared, lock) = state_directory::open(state, opened.store.clone(), root.store, runtime.handle().clone())?;
    let _guard = runtime.enter();
    let signals = Signals::watch()?;
    let socket = ControlSocket::bind(&settings.control_socket)?;
    let door = settings.control_door.as_ref().map(RemoteDoor::bind).transpose()?;
    let control_tcp = door.as_ref().map(|door| format!("https://{}", door.address()));
    let timer = PurgeTimer::default();
    let fleet = Fleet::start(shared, settings.detach_after, timer.clone());
    let purging = runtime.spawn(timer.run(opened.store.clone()));
    let nbd = Server::start(nbd_settings(settings), Arc::new(FleetExports(fleet.clone())), runtime.handle().clone())?;
    let addresses = nbd.addresses();
    let (nbd_addresses, counts) = (addresses.clone(), opened.counts.clone());
    let service = FleetService { fleet: fleet.clone(), counts, nbd: nbd_addresses, control_tcp: control_tcp.clone() };
    let (stop, stopped) = watch::channel(());
    let control = runtime.spawn(answer(socket, door, Arc::new(service), stopped));
    tracing::info!(store = opened.store.address(), nbd = ?addresses, control = %settings.control_socket.display(), control_tcp, "varved is ready");
    runtime.block_on(signals.wait());
    tracing::info!("stopping");
    let cut_off = nbd.stop(CLIENTS_LEAVE);
    if cut_off > 0 {
        tracing::warn!(cut_off, "connections did not end in time and were cut off");
    }
    // Wherever it is: the next purge goes on with it.
    purging.abort();
    let left = runtime.block_on(fleet.detach_all(UPLOADS_END));
    drop(stop);
    runtime.block_on(control).map_err(|error| Error::invalid(format!("the control socket failed: {error}")))??;
    drop(lock);
    if left.is_empty() {
        return Ok(());
    }
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    Err(Error::new(
        varve::error::ErrorKind::Unavailable,
        format!(
            "not handed back: {}; their logs stay here, and this host carries on with them when it starts again",
            left.join(", ")
        ),
    ))
}

/// Answers on the control socket, and at the door over TCP if there is one, until the other end of `stopped` is gone.
async fn answer(
    socket: ControlSocket,
    door: Option<RemoteDoor>,
    service: Arc<FleetService>,
    stopped: watch::Receiver<()>,
) -> Result<()> {
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move {
            // An error means that the sender is gone, which is the news.
            let _ = stopped.changed().await;
        }
    };
    let (on_socket, over_tcp) = (service.clone(), until_stopped());
    let over_tcp = async {
        if let Some(door) = door {
            door.serve(service, over_tcp).await;
        }
    };
    tokio::join!(control::serve(socket, on_socket, until_stopped()), over_tcp).0
}

async fn open_store(settings: &SharedSettings) -> Result<(store::OpenStore, varve::format::manifest::StoreRoot)> {
    let opened = store::open_with_regions(settings, false).await?;
    let root = root::read(&*opened.store).await?;
    store::probe(&*opened.store).await?;
    Ok((opened, root))
}

fn nbd_settings(settings: &Settings) -> NbdSettings {
    let mut tls = nbd::TlsSettings::default();
    if let Some(wanted) = &settings.tls {
        tls.mode = if wanted.required { nbd::TlsMode::Require } else { nbd::TlsMode::Allow };
        tls.certificate = Some(wanted.certificate.clone());
        tls.key = Some(wanted.key.clone());
        tls.client_authority = wanted.client_ca.clone();
    }
    NbdSettings {
        // The default address gives way to sockets that systemd hands over.
        tcp: if settings.nbd_is_default && std::env::var_os("LISTEN_FDS").is_some() {
            Vec::new()
        } else {
            settings.nbd.clone()
        },
        unix: settings.nbd_unix.iter().cloned().collect(),
        inherited: true,
        tls,
        rules: settings.clients.clone().map(nbd::Rules),
        allow_insecure_tcp: settings.allow_insecure_tcp,
        connections_max: usize::try_from(settings.connections_max).unwrap_or(usize::MAX),
        origin_connections_max: usize::try_from(settings.client_connections_max).unwrap_or(usize::MAX),
        handshake_time: settings.handshake_time,
        idle_time: settings.idle_time,
        transfer_bytes_max: settings.transfer_size.0,
        ..NbdSettings::default()
    }
}

/// The signals on which the daemon stops.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Watches from now on: whoever finds a door open may ask to stop at once.
    fn watch() -> Result<Signals> {
        let watch = |kind| signal(kind).context(|| "cannot watch for signals");
        Ok(Signals { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
