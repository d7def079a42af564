//! Small kernels of our own, loaded by the boot protocol and run by a vCPU.

use std::time::{Duration, Instant};

use crate::support::{Running, Temporary, boot, has_kvm, kernel};

/// mov edx, 604h; mov ax, 2000h; out dx, ax; hlt
const POWER_OFF: [u8; 12] = [0xBA, 0x04, 0x06, 0, 0, 0x66, 0xB8, 0x00, 0x20, 0x66, 0xEF, 0xF4];

#[test]
fn a_kernel_finds_its_command_line_and_console_and_powers_off() {
    if !has_kvm() {
        return;
    }
    let print_command_line = [
        &[0x8B, 0xB6, 0x28, 0x02, 0, 0][..], // mov esi, [rsi + boot_params.hdr.cmd_line_ptr]
        &[0xBA, 0xF8, 0x03, 0, 0],           // mov edx, 3F8h
        &[0xAC, 0x84, 0xC0],                 // again: lodsb; test al, al
        &[0x74, 0x03, 0xEE, 0xEB, 0xF8],     // jz done; out dx, al; jmp again
        &POWER_OFF,
    ];
    let kernel = kernel("print", &print_command_line.concat());
    let run = boot(&["--kernel", kernel.path(), "--cmdline=console=ttyS0 hello"]);
    assert_eq!((run.status, run.console.as_str()), (Some(0), "console=ttyS0 hello"), "{}", run.messages);
}

/// The least time from one reset to the next.
const RESET_INTERVAL: Duration = Duration::from_millis(100);
const RESETS: u32 = 8;

#[test]
fn a_guest_that_resets_itself_repeatedly_is_rebooted_at_a_bounded_rate() {
    if !has_kvm() {
        return;
    }
    let keyboard_reset = kernel("keyboard-reset", &[0xB0, 0xFE, 0xE6, 0x64, 0xF4]); // mov al, 0FEh; out 64h, al; hlt
    let triple_fault = kernel("triple-fault", &[0x0F, 0x0B]); // ud2
    for kernel in [keyboard_reset, triple_fault] {
        let started = Instant::now();
        let mut running = Running::start(&["--kernel", kernel.path(), "--events=json"]);
        for _ in 0..=RESETS {
            assert_eq!(running.wait_for("reset")["cause"], "guest");
        }
        let elapsed = started.elapsed();
        assert!(elapsed >= RESET_INTERVAL * RESETS, "{elapsed:?}");
    }
}

#[test]
fn a_guest_that_hangs_with_interrupts_off_times_out() {
    if !has_kvm() {
        return;
    }
    // Both preloads are at their largest, so at 1 MHz it times out after 2 * (0xFFFFF << 5) * 30 ns, about two seconds.
    let mut code = Vec::new();
    let mut outl = |port: u16, value: u32| {
        code.push(0xBA);
        code.extend(u32::from(port).to_le_bytes());
        code.push(0xB8);
        code.extend(value.to_le_bytes());
        code.push(0xEF);
    };
    outl(0xCF8, 0x8000_1860);
    outl(0xCFC, 0x0000_0007); // 1 MHz
    outl(0xCF8, 0x8000_1868);
    outl(0xCFC, 0x0000_0002); // WDT_ENABLE
    code.extend([0xFA, 0xF4, 0xEB, 0xFD]); // cli; hlt; jmp to hlt
    let kernel = kernel("hang", &code);
    let run = boot(&["--kernel", kernel.path(), "--events=json", "--watchdog=i6300esb,action=poweroff"]);
    assert_eq!(run.status, Some(3), "{}", run.messages);
    let expiry = run.expiry("timeout");
    assert_eq!(expiry["heartbeats"], 0);
    assert_eq!(expiry["last_heartbeat_ns"], serde_json::Value::Null);
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    if !has_kvm() {
        return;
    }
    let text = Temporary::with("no-kernel", b"not a kernel at all");
    let run = boot(&["--kernel", text.path(), "--events=json"]);
    assert_eq!(run.status, Some(4), "{}", run.messages);
    assert!(run.messages.contains("neither a bzImage nor a 64-bit x86 ELF kernel"), "{}", run.messages);
}
