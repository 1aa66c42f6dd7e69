//! Puts a guest together: image, memory, domain, devices, engine.

use std::{fs, path::Path, sync::Arc, thread::JoinHandle};

use paravane_abi::{
    memory::E820Entry,
    units::{DomId, Mfn, PAGE_SIZE, Pfn, Port},
};
use paravane_builder::{
    domain::{BuildError, BuildRequest, BuiltDomain, PlanError, build},
    image::Image,
};
use paravane_devices::{
    console::Console,
    xenstore::{Store, StoreConnection},
};
use paravane_engine::Engine;
use paravane_hypervisor::{CONTROL_DOMAIN, CpuidPolicy, Domain, DomainConfig, Machine as Frames};
use paravane_memory::Memory;
use paravane_translate::{Options, Translator};
use zerocopy::FromZeros;

use super::{
    RunConfig,
    clock::Calibration,
    kernel_file::KernelFile,
    log::Sink,
    machine::{Backends, Machine, Used},
    symbols::Symbols,
    toolstack::{self, GuestFacts},
};
use crate::failure::Failure;

/// The guest's own number: the first after the control domain.
const GUEST: DomId = DomId(1);
/// Ports that the guest may have, beyond which event channels need the FIFO interface's full range.
const MAX_PORT: Port = Port((1 << 17) - 1);

/// A guest that is ready to run.
pub(super) struct Assembled {
    pub(super) machine: Machine,
    pub(super) engine: Translator,
    /// A few lines about it.
    pub(super) summary: String,
    /// The symbols of the kernel file itself.
    pub(super) symbols: Symbols,
    /// Puts the unpacked kernel into the cache.
    pub(super) keeping: Option<JoinHandle<()>>,
}

/// Reads the files and builds everything.
pub(super) fn assemble(
    config: &RunConfig,
    clock: Calibration,
    sink: &Arc<Sink>,
) -> Result<Assembled, Failure> {
    let file = KernelFile::read(&config.kernel, config.cache.clone())?;
    let image = Image::open(file.bytes()).map_err(|error| refused(config, &error))?;
    let kernel = image.pv_kernel().map_err(|error| refused(config, &error))?;
    log_kernel(config, &image);
    let symbols = Symbols::of_image(&image);
    let initrd = config.initrd.as_deref().map(read_initrd).transpose()?;
    let frames = Frames::plan(config.pages).map_err(|error| Failure::Usage(error.to_string()))?;
    let memory = frames.allocate().map_err(|error| Failure::Internal(error.to_string()))?;
    let memory = Arc::new(memory);
    let engine = Translator::new(
        Arc::clone(&memory),
        Options { one_instruction_blocks: config.one_insn_blocks, perf_map: config.perf_map },
    );
    let mut engine = engine.map_err(|error| Failure::Internal(error.to_string()))?;
    let uuid = fresh_uuid();
    let mut domain = new_domain(&frames, &memory, &engine, clock, uuid)?;
    let console_port = domain.offer_port(CONTROL_DOMAIN).map_err(internal)?;
    let store_port = domain.offer_port(CONTROL_DOMAIN).map_err(internal)?;
    // The plan stays within the memory that the machine was laid out for.
    let mfn_of = |pfn: Pfn| frames.frame_of(pfn).unwrap_or(frames.memory.start);
    let built = build(&BuildRequest {
        kernel,
        initrd: initrd.as_deref(),
        command_line: &config.command_line,
        pages: config.pages,
        memory: &memory,
        mfn_of: &mfn_of,
        shared_info: frames.shared_info.base().unwrap_or_default(),
        console_port,
        store_port,
    })
    .map_err(|error| build_failed(config, &error))?;
    log_layout(&frames, &built);
    let summary = summarise(config, &built);
    let backends = connect(config, &mut domain, &memory, &built, (console_port, store_port), uuid)?;
    let mut context = built.context;
    domain.adopt(&frames, config.pages, &mut context).map_err(internal)?;
    if config.trace_hypercalls {
        domain.trace_hypercalls();
    }
    *engine.context_mut() = context;
    let machine = Machine::new(memory, domain, backends, Arc::clone(sink));
    Ok(Assembled { machine, engine, summary, symbols, keeping: file.keep(image) })
}

fn read_initrd(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::Input { path: path.to_owned(), error })?;
    log::info!("initrd {}: {} bytes", path.display(), bytes.len());
    Ok(bytes)
}

/// What the image is.
fn log_kernel(config: &RunConfig, image: &Image<'_>) {
    if !log::log_enabled!(log::Level::Info) {
        return;
    }
    let inspection = image.inspect();
    log::info!(
        "kernel {}: {} ELF of {} bytes. {} {}",
        config.kernel.display(),
        inspection.elf.guest,
        inspection.elf.len,
        inspection.verdict.summary,
        inspection.verdict.grounds.join(" ")
    );
    for problem in &inspection.problems {
        log::warn!("kernel: {problem}");
    }
    if let Some(table) = &inspection.addresses.symbol_table {
        log::info!("kernel: its symbol table is loaded behind it, {} symbols", table.symbols);
    }
}

/// Where everything is.
fn log_layout(frames: &Frames, built: &BuiltDomain) {
    let plan = &built.plan;
    let end = Mfn(frames.memory.end.0 - 1);
    log::info!("memory: {} pages, machine frames {} to {end}", plan.pages, frames.memory.start);
    log::debug!("layout: page 0 appears at {}, pages up to {} are mapped", plan.virt_base, plan.mapped_end);
    for (what, range) in [("initrd", plan.initrd.as_ref()), ("p2m list", Some(&plan.p2m))] {
        if let Some(range) = range {
            log::debug!("layout: {what} in pages {} to {}", range.start, range.end);
        }
    }
    for (what, page) in [
        ("start_info", plan.start_info),
        ("xenstore ring", plan.xenstore),
        ("console ring", plan.console),
        ("boot stack", plan.boot_stack),
    ] {
        let frame = frames.frame_of(page).unwrap_or_default();
        log::debug!("layout: {what} in page {page}, frame {frame}");
    }
    log::debug!("layout: page tables in pages {} to {}", plan.tables.start, plan.tables.end);
    if let Some(mapping) = &plan.p2m_mapping {
        log::debug!(
            "layout: the p2m list is mapped at {}, by page tables in pages {} to {}",
            mapping.at,
            mapping.tables.start,
            mapping.tables.end
        );
    }
}

fn new_domain(
    frames: &Frames,
    memory: &Arc<Memory>,
    engine: &Translator,
    clock: Calibration,
    uuid: [u8; 16],
) -> Result<Domain, Failure> {
    let clock = clock.finish();
    let domain_config = DomainConfig {
        id: GUEST,
        max_vcpus: 1,
        shared_info: frames.shared_info,
        clock,
        handle: uuid,
        max_port: MAX_PORT,
        cpuid: CpuidPolicy::new(|leaf, subleaf| engine.host().cpuid(leaf, subleaf), clock.tsc_hz),
    };
    Ok(Domain::new(Arc::clone(memory), &domain_config))
}

/// A random UUID from the host; zeros where it gives none, which no guest minds.
fn fresh_uuid() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes()
}

/// Binds the backends and fills xenstore.
fn connect(
    config: &RunConfig,
    domain: &mut Domain,
    memory: &Memory,
    built: &BuiltDomain,
    (console_port, store_port): (Port, Port),
    uuid: [u8; 16],
) -> Result<Backends, Failure> {
    let mut map = E820Entry::new_zeroed();
    map.size = (config.pages * PAGE_SIZE).into();
    const RAM: u32 = 1;
    map.kind = RAM.into();
    domain.set_memory_map(vec![map]);
    for port in [console_port, store_port] {
        domain.bind_backend(port, CONTROL_DOMAIN).map_err(internal)?;
    }
    Console::new(memory, built.console).connect().map_err(internal)?;
    let mut store = Store::new();
    let facts = GuestFacts {
        domain: GUEST,
        name: config.kernel.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        uuid,
        pages: config.pages,
        vcpus: 1,
        store: (built.xenstore, store_port),
        console: (built.console, console_port),
    };
    toolstack::populate(&mut store, &facts)
        .map_err(|_| Failure::Internal("a key of xenstore is no path".to_owned()))?;
    Ok(Backends {
        console: built.console,
        console_port,
        store,
        connection: StoreConnection::new(GUEST, built.xenstore),
        store_port,
        typed: std::collections::VecDeque::new(),
        console_broken: false,
        used: Used::default(),
    })
}

fn summarise(config: &RunConfig, built: &BuiltDomain) -> String {
    format!(
        "paravane: {} with {} MiB on the binary translator (x86-64 to x86-64); entry {:#x}{}\n",
        config.kernel.display(),
        (config.pages * PAGE_SIZE) >> 20,
        built.context.rip,
        match &built.plan.initrd {
            Some(range) => format!(", initrd of {} pages", range.end.0 - range.start.0),
            None => String::new(),
        }
    )
}

fn refused(config: &RunConfig, error: &dyn std::fmt::Display) -> Failure {
    Failure::Data(format!("{}: {error}", config.kernel.display()))
}

fn build_failed(config: &RunConfig, error: &BuildError) -> Failure {
    match error {
        BuildError::CommandLine { .. } => Failure::Usage(error.to_string()),
        BuildError::Plan(PlanError::TooLittleMemory { .. } | PlanError::TooMuchMemory { .. }) => {
            Failure::Usage(error.to_string())
        }
        BuildError::Plan(PlanError::OutOfAddresses { .. })
        | BuildError::Guest32
        | BuildError::Outside { .. } => refused(config, error),
        BuildError::Memory(_) => Failure::Internal(error.to_string()),
    }
}

fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::Internal(error.to_string())
}
