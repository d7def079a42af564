//! The worlds of the i6300esb: each explores one part of it with an alphabet of its own.

mod contract;
mod step;

use std::marker::PhantomData;

use vm_watchdog_devices::i6300esb::{ArmedStateV1, I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, LastReset, Model};

use contract::{I6300esbContract, View};
use step::Act;
pub use step::Write;

use crate::device::{Device, Seam, Sound, at, from, unchanged};
use crate::world::{Contract, DeviceWorld, Outcome};

/// Where firmware has put BAR0, in worlds with firmware.
const FIRMWARE_BAR0: u32 = 0xFEB0_0000;

/// The device of a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Setup {
    /// It has an interrupt pin and MSI.
    pub has_interrupts: bool,
    /// Firmware has assigned BAR0 and enabled memory.
    pub has_firmware: bool,
}

impl Setup {
    fn device(self) -> I6300esb {
        let mut config = I6300esbConfig::default();
        if self.has_interrupts {
            config = config.with_interrupt_pin(InterruptPin::IntA).with_msi();
        }
        if self.has_firmware {
            config = config.with_bar0(FIRMWARE_BAR0).with_command(0x0002);
        }
        I6300esb::new(config)
    }
}

/// The accesses of the guest at the seam.
pub trait Bus: Seam<I6300esb> {
    /// A write of the alphabet.
    fn write(&self, model: &mut I6300esb, write: Write, now: u64) -> Access {
        self.write_on_the_bus(model, write, now)
    }

    fn write_on_the_bus(&self, model: &mut I6300esb, write: Write, now: u64) -> Access {
        let (is_config, offset, value, width) = write.on_the_bus();
        let data = &value.to_le_bytes()[..width];
        match is_config {
            true => self.write_config(model, offset, data, now),
            false => self.write_bar(model, offset.into(), data, now),
        }
    }

    fn read_config(&self, model: &mut I6300esb, offset: u16, data: &mut [u8], now: u64) -> Access {
        model.read_config(offset, data, at(now))
    }

    fn read_bar(&self, model: &mut I6300esb, offset: u64, data: &mut [u8], now: u64) -> Access {
        model.read_bar(offset, data, at(now))
    }

    fn write_config(&self, model: &mut I6300esb, offset: u16, data: &[u8], now: u64) -> Access {
        model.write_config(offset, data, at(now))
    }

    fn write_bar(&self, model: &mut I6300esb, offset: u64, data: &[u8], now: u64) -> Access {
        model.write_bar(offset, data, at(now))
    }
}

impl Bus for Sound {}

/// An exploration of a device behind the seam `S`.
pub struct I6300esbWorld<S> {
    pub name: &'static str,
    setup: Setup,
    acts: Vec<Act>,
    seam: PhantomData<S>,
}

impl<S: Bus> I6300esbWorld<S> {
    fn new(name: &'static str, setup: Setup, writes: &[Write], host: &[Act]) -> Self {
        let guest = writes.iter().map(|&write| Act::Guest(write)).chain([Act::Read]);
        Self { name, setup, acts: guest.chain(host.iter().copied()).collect(), seam: PhantomData }
    }

    pub fn all() -> [Self; 5] {
        [Self::two_stages(), Self::free_running(), Self::interrupts(), Self::resets(), Self::header()]
    }

    /// Watchdog mode: two stages of all lengths at both prescalers, the lock, the unlock sequence, the status bits.
    pub fn two_stages() -> Self {
        use Write::{Configuration, InterruptStatus, Key, Lock, Preload, Reload};
        let writes = [
            Key(0x80),
            Key(0x86),
            Preload(1, 0),
            Preload(1, 2),
            Preload(2, 0),
            Preload(2, 1),
            Reload(0x0100),
            Reload(0x0200),
            InterruptStatus(0x01),
            Configuration(0x00),
            Configuration(0x04),
            Lock(0x00),
            Lock(0x02),
            Lock(0x03),
        ];
        Self::new("two stages", Setup::default(), &writes, &[Act::Poll])
    }

    /// Free running mode and back, with the output on and off, and a host that is several cycles late.
    pub fn free_running() -> Self {
        use Write::{Configuration, Key, Lock, Preload, Reload};
        let writes = [
            Key(0x80),
            Key(0x86),
            Preload(1, 0),
            Preload(1, 2),
            Preload(2, 1),
            Reload(0x0100),
            Configuration(0x00),
            Configuration(0x24),
            Lock(0x00),
            Lock(0x02),
            Lock(0x06),
        ];
        Self::new("free running", Setup::default(), &writes, &[Act::Poll])
    }

    /// Pin and MSI: who has the interrupt, and each has one message.
    pub fn interrupts() -> Self {
        use Write::{Command, Configuration, InterruptStatus, Key, Lock, MsiAddress, MsiEnable, Preload, Reload};
        let writes = [
            Key(0x80),
            Key(0x86),
            Preload(1, 0),
            Reload(0x0100),
            Lock(0x00),
            Lock(0x02),
            InterruptStatus(0x00),
            InterruptStatus(0x01),
            Configuration(0x00),
            Configuration(0x01),
            Configuration(0x02),
            Configuration(0x03),
            Command(0x0000),
            Command(0x0004),
            Command(0x0404),
            MsiEnable(false),
            MsiEnable(true),
            MsiAddress(0xFEE0_0000),
        ];
        let setup = Setup { has_interrupts: true, has_firmware: false };
        let host = [Act::Poll, Act::TakeMessage, Act::PutBackMessage, Act::Reset];
        Self::new("interrupts", setup, &writes, &host)
    }

    /// Resets at every moment, and guests that do not notice them.
    pub fn resets() -> Self {
        use Write::{Configuration, Key, Lock, Preload, Reload};
        let writes = [
            Key(0x80),
            Key(0x86),
            Preload(1, 2),
            Preload(2, 0),
            Reload(0x0100),
            Reload(0x1000),
            Configuration(0x04),
            Lock(0x00),
            Lock(0x01),
            Lock(0x03),
            Lock(0x06),
        ];
        Self::new("resets", Setup::default(), &writes, &[Act::Poll, Act::Reset, Act::Rearm, Act::TakeOver])
    }

    /// The rest of configuration space: BAR0 is sized, moved and switched off while the watchdog runs.
    pub fn header() -> Self {
        use Write::{
            Bar0, CacheLineLatency, Command, InterruptLine, Lock, MsiAddress, MsiData, MsiEnable, MsiUpperAddress,
        };
        let writes = [
            Command(0x0000),
            Command(0x0002),
            Command(0xFFFF),
            Bar0(0x0000_0000),
            Bar0(0xFEC0_0008),
            Bar0(0xFFFF_FFFF),
            CacheLineLatency(0x4010),
            InterruptLine(11),
            MsiEnable(true),
            MsiAddress(0xFEE0_1003),
            MsiUpperAddress(0x0000_0001),
            MsiData(0x4041),
            Lock(0x00),
            Lock(0x03),
        ];
        let setup = Setup { has_interrupts: true, has_firmware: true };
        Self::new("header", setup, &writes, &[Act::Poll, Act::Reset, Act::Rearm])
    }

    /// A read changes nothing, and what is written outside the registers changes nothing.
    fn inspect_accesses(&self, device: &Device<I6300esb, S>, now: u64) -> Result<(), String> {
        for now in [now, now - 1] {
            let mut read = device.clone();
            let Device { model, seam } = &mut read;
            seam.read_config(model, 0, &mut [0; 0x102], now);
            seam.read_config(model, u16::MAX, &mut [0; 4], now);
            seam.read_bar(model, 0, &mut [0; 0x12], now);
            seam.read_bar(model, u64::MAX, &mut [0; 4], now);
            unchanged("a read", device, &read)?;
        }
        // Identity, class, reserved dwords, the live counter, and bytes of the watchdog's dwords without a register.
        let reserved =
            [(0x00, 4), (0x06, 2), (0x08, 4), (0x0E, 2), (0x14, 4), (0x2C, 4), (0x34, 4), (0x3D, 3), (0x50, 4)];
        let reserved =
            reserved.into_iter().chain([(0x62, 2), (0x64, 4), (0x69, 3), (0x6C, 4), (0x100, 4), (u16::MAX, 4)]);
        // The capability, if there is none; otherwise its read-only parts.
        let msi: &[(u16, usize)] = if self.setup.has_interrupts {
            &[(0x40, 2), (0x4E, 2)]
        } else {
            &[(0x40, 4), (0x44, 4), (0x48, 4), (0x4C, 4)]
        };
        for (offset, width) in reserved.chain(msi.iter().copied()) {
            let mut written = device.clone();
            let access = written.seam.write_config(&mut written.model, offset, &[0xFF; 4][..width], now);
            unchanged(&format!("a write of ones to {offset:#x} of configuration space"), device, &written)?;
            unchanged("the kind of a write outside the registers", &Access::Ignored, &access)?;
        }
        for offset in [0x10, 0x1C, 0x100, u64::from(u32::MAX), u64::MAX] {
            let mut written = device.clone();
            let access = written.seam.write_bar(&mut written.model, offset, &[0xFF; 4], now);
            unchanged(&format!("a write of ones to {offset:#x} of BAR0"), device, &written)?;
            unchanged("the kind of a write outside the registers", &Access::Ignored, &access)?;
        }
        Ok(())
    }

    /// A VMM that owns the PCI header finds the registers of the device where it completes a read.
    fn inspect_own_header(&self, device: &Device<I6300esb, S>, now: u64) -> Result<(), String> {
        let mut model = device.model.clone();
        let (mut device_bytes, mut completed) = ([0; 0x100], [0x5A; 0x100]);
        model.read_config(0, &mut device_bytes, at(now));
        model.complete_config_read(0, &mut completed, at(now));
        let has_msi = self.setup.has_interrupts;
        let expected: Vec<u8> = (0..0x100)
            .map(|offset| {
                let own: u8 = match offset {
                    0x06 => 0x08 | if has_msi { 0x10 } else { 0 },
                    0x34 | 0x40..0x50 if has_msi => 0xFF,
                    0x60..0x6C => 0xFF,
                    _ => 0,
                };
                0x5A & !own | device_bytes[offset] & own
            })
            .collect();
        unchanged("a completed read", &expected, &completed.to_vec())
    }
}

impl<S: Bus> DeviceWorld for I6300esbWorld<S> {
    type Model = I6300esb;
    type Seam = S;
    type Act = Act;
    type Contract = I6300esbContract;

    fn contract(&self, now: u64) -> I6300esbContract {
        I6300esbContract::new(self.setup, now)
    }

    fn fresh(&self, _: &I6300esbContract) -> I6300esb {
        self.setup.device()
    }

    fn acts(&self) -> &[Act] {
        &self.acts
    }

    /// The others do not, or have an effect only while no counter runs.
    fn tells_the_time(act: Act) -> bool {
        matches!(act, Act::Guest(_) | Act::Read | Act::Poll)
    }

    fn act(&self, device: &mut Device<I6300esb, S>, act: Act, now: u64) -> Outcome {
        let Device { model, seam } = device;
        match act {
            Act::Guest(write) => Outcome::Access(seam.write(model, write, now)),
            Act::Read => Outcome::Access(seam.read_bar(model, 0x0C, &mut [0; 2], now)),
            Act::Poll => Outcome::Expired(device.poll(now)),
            Act::Rearm => Outcome::Rearmed(model.rearm(at(now))),
            Act::Reset | Act::TakeMessage | Act::PutBackMessage | Act::TakeOver => {
                match act {
                    Act::Reset => device.reset(),
                    Act::TakeMessage => model.take_message(),
                    Act::PutBackMessage => model.put_back_message(),
                    _ => model.set_last_reset(LastReset::new(true)),
                }
                Outcome::Nothing
            }
        }
    }

    fn view(&self, device: &Device<I6300esb, S>, now: u64) -> View {
        let Device { mut model, seam } = device.clone();
        let mut config = |offset| {
            let mut data = [0; 4];
            seam.read_config(&mut model, offset, &mut data, now);
            u32::from_le_bytes(data)
        };
        let [command_status, bar0] = [0x04, 0x10].map(&mut config);
        let [configuration, live_counter, lock] = [0x60, 0x64, 0x68].map(&mut config);
        let [message_control, message_address, upper_address, message_data] = [0x40, 0x44, 0x48, 0x4C].map(&mut config);
        let [cache_line_latency, interrupt] = [0x0C, 0x3C].map(&mut config);
        let [preload1, preload2, interrupt_status, reload] = [0, 4, 8, 12].map(|offset| {
            let mut data = [0; 4];
            seam.read_bar(&mut model, offset, &mut data, now);
            u32::from_le_bytes(data)
        });
        let armed = |state: ArmedStateV1| {
            (state.wdt_configuration, state.wdt_lock, [state.preload1, state.preload2], state.bar0)
        };
        View {
            poll_in: device.poll_in(now),
            timeout_in: model.timeout_at().map(|instant| from(now, instant)),
            is_armed: model.is_armed(),
            is_locked_enabled: lock & 0x03 == 0x03,
            command: command_status as u16,
            status: (command_status >> 16) as u16,
            bar0,
            decoded: model.bar0(),
            storage: [cache_line_latency as u16, interrupt as u16 & 0xFF],
            msi: [message_control >> 16, message_address, upper_address, message_data],
            configuration: configuration as u8,
            live_counter,
            lock: lock as u8,
            preloads: [preload1, preload2],
            interrupt_status,
            reload,
            line: model.interrupt_level(),
            message: model
                .message()
                .map(|message| ([message.address as u32, (message.address >> 32) as u32], message.data)),
            has_timed_out: model.last_reset().by_watchdog && model.timed_out(),
            is_unaware: model.guest_may_predate_reset(),
            armed_now: model.armed_registers().map(armed),
            armed_before: model.armed_before_reset().map(armed),
            rearm_timeout: model.rearm_timeout().map(|timeout| timeout.as_nanos() as u64),
        }
    }

    fn inspect_device(&self, device: &Device<I6300esb, S>, contract: &I6300esbContract) -> Result<(), String> {
        self.inspect_accesses(device, contract.now())?;
        self.inspect_own_header(device, contract.now())
    }
}
