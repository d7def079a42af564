//! A guest's view: a program without an operating system times its own reloads by the TSC, in turns with three writes to
//! memory that no device answers, which are three bare exits to the VMM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::qemu::Qemu;

use crate::measure::{median, quantile};

/// How many pairs of batches the guest measures, and how many reloads a batch has.
const ROUNDS: usize = 200;
const BATCH: f64 = 100.0;
const LIMIT: Duration = Duration::from_secs(60);

/// Where the program is in memory.
const BASE: u32 = 0x20_0000;

// Begins in 64-bit mode (`boot`) or in 32-bit mode (QEMU, by the PVH entry). From `guest_both` on, the bytes mean the same in
// both. EDI is the address of BAR0, ESI the device, later the memory without a device, EBP counts rounds.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata.guest, \"a\", @progbits",
    ".globl guest_begin, guest_both, guest_end",
    "guest_begin:",
    // Maps the fourth GiB onto itself, uncached, by 2 MiB pages; the VMM has mapped the first.
    ".code64",
    "mov edi, 0x300000",
    "mov eax, 0xC000009B",
    "mov ecx, 512",
    "2: mov [rdi], rax",
    "add rdi, 8",
    "add eax, 0x200000",
    "sub ecx, 1",
    "jnz 2b",
    "mov rax, cr3",
    "mov rax, [rax]",
    "and rax, -4096",
    "mov qword ptr [rax + 24], 0x300003",
    "guest_both:",
    ".code32",
    "mov esp, 0x80000",
    // Looks for 8086:25AB in every slot of bus 0.
    "mov esi, 0x80000000",
    "2: lea eax, [esi]",
    "call 8f",
    "in eax, dx",
    "cmp eax, 0x25AB8086",
    "je 3f",
    "add esi, 0x800",
    "cmp esi, 0x80010000",
    "jb 2b",
    "jmp 7f",
    // Its BAR0; memory enable in the command register; WDT_ENABLE in the lock register.
    "3: lea eax, [esi + 0x10]",
    "call 8f",
    "in eax, dx",
    "and eax, -16",
    "mov edi, eax",
    "lea eax, [esi + 0x04]",
    "call 8f",
    "in eax, dx",
    "or eax, 2",
    "out dx, ax",
    "lea eax, [esi + 0x68]",
    "call 8f",
    "mov eax, 2",
    "out dx, al",
    "mov esi, 0xFD000000",
    "mov ebp, 200",
    // A batch of reloads, then one of writes to the memory without a device.
    "4: rdtsc",
    "mov ebx, eax",
    "mov ecx, 100",
    "5: mov eax, 0x80",
    "mov [edi + 0x0C], ax",
    "mov eax, 0x86",
    "mov [edi + 0x0C], ax",
    "mov eax, 0x100",
    "mov [edi + 0x0C], ax",
    "sub ecx, 1",
    "jnz 5b",
    "rdtsc",
    "sub eax, ebx",
    "call 9f",
    "rdtsc",
    "mov ebx, eax",
    "mov ecx, 100",
    "6: mov eax, 0x80",
    "mov [esi + 0x0C], ax",
    "mov eax, 0x86",
    "mov [esi + 0x0C], ax",
    "mov eax, 0x100",
    "mov [esi + 0x0C], ax",
    "sub ecx, 1",
    "jnz 6b",
    "rdtsc",
    "sub eax, ebx",
    "call 9f",
    "sub ebp, 1",
    "jnz 4b",
    // Powers off by ACPI.
    "7: mov edx, 0x604",
    "mov eax, 0x2000",
    "out dx, ax",
    "hlt",
    "jmp 7b",
    // Addresses configuration space with EAX, and puts the data port into DX.
    "8: mov edx, 0xCF8",
    "out dx, eax",
    "mov edx, 0xCFC",
    "ret",
    // Writes EAX to the second serial port, as a line of hexadecimal digits.
    "9: mov ebx, eax",
    "mov ecx, 8",
    "2: mov edx, 0x2FD",
    "3: in al, dx",
    "test al, 0x20",
    "jz 3b",
    "rol ebx, 4",
    "mov eax, ebx",
    "and eax, 15",
    "add eax, 0x30",
    "cmp eax, 0x39",
    "jbe 4f",
    "add eax, 7",
    "4: mov edx, 0x2F8",
    "out dx, al",
    "sub ecx, 1",
    "jnz 2b",
    "mov edx, 0x2FD",
    "5: in al, dx",
    "test al, 0x20",
    "jz 5b",
    "mov edx, 0x2F8",
    "mov eax, 10",
    "out dx, al",
    "ret",
    "guest_end:",
    ".code64",
    ".popsection",
);

/// The program as an ELF file with both entries.
#[cfg(target_arch = "x86_64")]
fn elf() -> Vec<u8> {
    unsafe extern "C" {
        static guest_begin: u8;
        static guest_both: u8;
        static guest_end: u8;
    }
    let (begin, both, end) = (&raw const guest_begin, &raw const guest_both, &raw const guest_end);
    // SAFETY: the three labels are in one section, in this order, and nothing writes to it.
    let code = unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) };
    let both = BASE + (both.addr() - begin.addr()) as u32;
    // Header, two program headers, the note, the code.
    let (note_at, code_at) = (64 + 2 * 56, 256_u64);
    // The name Xen, and XEN_ELFNOTE_PHYS32_ENTRY.
    let note = [&[4_u32, 4, 18].map(u32::to_le_bytes).concat()[..], b"Xen\0", &both.to_le_bytes()].concat();
    let program_header = |kind: u32, at: u64, address: u64, size: usize| {
        let fields = [at, address, address, size as u64, size as u64, 4].map(u64::to_le_bytes);
        [[kind, 5].map(u32::to_le_bytes).concat(), fields.concat()].concat()
    };
    // 64-bit, little-endian, version 1; an executable for x86-64.
    let mut elf = [&b"\x7fELF\x02\x01\x01"[..], &[0; 9], &[2, 0, 62, 0, 1, 0, 0, 0]].concat();
    elf.extend([u64::from(BASE), 64, 0].map(u64::to_le_bytes).concat());
    elf.extend([0_u16, 0, 64, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend(program_header(1, code_at, BASE.into(), code.len()));
    elf.extend(program_header(4, note_at, 0, note.len()));
    elf.extend(note);
    elf.resize(code_at as usize, 0);
    elf.extend(code);
    elf
}

#[cfg(not(target_arch = "x86_64"))]
fn elf() -> Vec<u8> {
    Vec::new()
}

/// Cycles of a reload and of three bare exits, in each round.
type Rounds = Vec<(f64, f64)>;

/// Waits until the guest has written all its figures, or its VMM has ended, or for a minute.
fn figures(mut vmm: Child, serial: &Path) -> Result<Rounds, String> {
    let started = Instant::now();
    let read = || fs::read_to_string(serial).unwrap_or_default();
    while vmm.try_wait().is_ok_and(|status| status.is_none())
        && read().lines().count() < 2 * ROUNDS
        && started.elapsed() < LIMIT
    {
        sleep(Duration::from_millis(20));
    }
    // It may have ended.
    let _ = vmm.kill();
    let _ = vmm.wait();
    let text = read();
    let cycles = |line: &str| u32::from_str_radix(line, 16).map(|cycles| f64::from(cycles) / BATCH);
    let cycles = text.lines().map(cycles).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if cycles.len() < 2 * ROUNDS {
        return Err(format!("its guest has written {} of {} figures", cycles.len(), 2 * ROUNDS));
    }
    Ok(cycles.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn print(name: &str, rounds: Result<Rounds, String>) {
    let rounds = match rounds {
        Ok(rounds) => rounds,
        Err(why) => return println!("| {name} | not measured: {why} | | | |"),
    };
    let reloads: Vec<f64> = rounds.iter().map(|(reload, _)| *reload).collect();
    let exits = median(rounds.iter().map(|(_, exits)| *exits).collect());
    let ratio = median(rounds.iter().map(|(reload, exits)| reload / exits).collect());
    let [quarter, half, three_quarters] = [0.25, 0.5, 0.75].map(|part| quantile(&reloads, part));
    println!("| {name} | {half:.0} | {quarter:.0} to {three_quarters:.0} | {exits:.0} | {ratio:.2} |");
}

pub fn measure(program: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let kernel = folder.path().join("guest.elf");
    fs::write(&kernel, elf()).expect("the guest");
    println!(
        "\n| A guest's reload, in cycles of its TSC | median | middle half | three bare exits | x three bare exits |"
    );
    println!("|---|---|---|---|---|");
    // In turns: a noisy minute hits more than one of them.
    for turn in 1..=2 {
        let serial = |name: &str| folder.path().join(format!("{name}-{turn}"));
        print(&format!("`vm-watchdog boot`, run {turn}"), boot(program, &kernel, &serial("boot")));
        for (name, qemu) in [("QEMU of Debian 12", Qemu::for_nested_kvm()), ("QEMU 11 or newer", Qemu::current())] {
            let rounds = qemu.map_err(|why| why.to_string());
            let rounds = rounds.and_then(|qemu| run(&qemu, "i6300esb", &kernel, &serial(name)));
            print(&format!("{name}, its own i6300esb, run {turn}"), rounds);
        }
        let served = Qemu::current().map_err(|why| why.to_string());
        let rounds = served.and_then(|qemu| serve(program, &qemu, &kernel, folder.path(), &serial("serve")));
        print(&format!("QEMU 11 or newer with `vm-watchdog serve`, run {turn}"), rounds);
    }
}

fn boot(program: &Path, kernel: &Path, serial: &Path) -> Result<Rounds, String> {
    let mut vmm = Command::new(program);
    vmm.args(["boot", "--watchdog", "i6300esb,action=none", "--kernel"]).arg(kernel).arg("--second-serial").arg(serial);
    figures(quietly(vmm)?, serial)
}

fn run(qemu: &Qemu, device: &str, kernel: &Path, serial: &Path) -> Result<Rounds, String> {
    let mut vmm = qemu.system("x86_64");
    vmm.args(["-machine", "pc,accel=kvm", "-m", "256", "-display", "none", "-nodefaults", "-serial", "null"])
        .args(["-action", "watchdog=none", "-serial"])
        .arg(format!("file:{}", serial.display()))
        .arg("-kernel")
        .arg(kernel)
        .args(["-device", device]);
    figures(quietly(vmm)?, serial)
}

fn serve(program: &Path, qemu: &Qemu, kernel: &Path, folder: &Path, serial: &Path) -> Result<Rounds, String> {
    let socket: PathBuf = folder.join("watchdog");
    let mut server = Command::new(program);
    server.args(["serve", "--watchdog", "i6300esb,action=none", "--socket"]).arg(&socket);
    let mut server = quietly(server)?;
    let started = Instant::now();
    while !socket.exists() && started.elapsed() < LIMIT {
        sleep(Duration::from_millis(5));
    }
    let socket = serde_json::json!({ "type": "unix", "path": socket });
    let device = serde_json::json!({ "driver": "vfio-user-pci", "socket": socket });
    let rounds = run(qemu, &device.to_string(), kernel, serial);
    // It may have ended.
    let _ = server.kill();
    let _ = server.wait();
    let _ = fs::remove_file(folder.join("watchdog"));
    rounds
}

fn quietly(mut command: Command) -> Result<Child, String> {
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.map_err(|error| error.to_string())
}
