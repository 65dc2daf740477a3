package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of /dev/kvm, and the one exit reason that the probe expects;
// linux/kvm.h, Documentation/virt/kvm/api.rst.
const (
	kvmCreateVM        = 0xae01
	kvmVCPUMmapSize    = 0xae04
	kvmSetUserMemory   = 0x4020ae46
	kvmCreateVCPU      = 0xae41
	kvmRun             = 0xae80
	kvmSetRegs         = 0x4090ae82
	kvmGetSregs        = 0x8138ae83
	kvmSetSregs        = 0x4138ae84
	kvmExitHLT         = 5
	kvmExitReason      = 8 // offset in struct kvm_run
	probeIterations    = 10_000
	probeLimit         = 3 * time.Millisecond
	probePatience      = 2 * time.Second
	probeAttempts      = 8 // of which the fastest counts: a host that is busy is slow too
	probeMemory        = 2 << 20
	probeCode, probeSP = 0x10000, 0x80000
)

// kvmSegment, kvmTable, kvmSregs and kvmRegs are the structs of linux/kvm.h.
type (
	kvmSegment struct {
		base                                             uint64
		limit                                            uint32
		selector                                         uint16
		typ, present, dpl, db, s, l, g, avl, unusable, _ uint8
	}
	kvmTable struct {
		base  uint64
		limit uint16
		_     [3]uint16
	}
	kvmSregs struct {
		cs, ds, es, fs, gs, ss, tr, ldt         kvmSegment
		gdt, idt                                kvmTable
		cr0, cr2, cr3, cr4, cr8, efer, apicBase uint64
		interrupts                              [4]uint64
	}
	kvmRegs struct {
		rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags uint64
	}
)

// ProbeKVM finds out whether /dev/kvm runs an ordinary guest at the speed of the
// hardware, by running one: a counted loop in long mode. Neither the API's version
// nor its capabilities tell. Nil means that it does; the error says why not, or
// wraps that of ctx.
func ProbeKVM(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	thread, result := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its vCPU
		thread <- unix.Gettid()
		took, err := spinGuest(limited)
		for n := 1; err == nil && took > probeLimit && n < probeAttempts && limited.Err() == nil; n++ {
			var again time.Duration
			if again, err = spinGuest(limited); err == nil {
				took = min(took, again)
			}
		}
		if err == nil && took > probeLimit {
			err = fmt.Errorf("/dev/kvm takes %v for what hardware does in less than 5 ms", took.Round(time.Millisecond))
		}
		result <- err
	}()
	tid := <-thread
	for {
		select {
		case err := <-result:
			if ctx.Err() != nil {
				return fmt.Errorf("probe /dev/kvm: %w", ctx.Err())
			}
			return err
		case <-time.After(probePatience / 20):
			if limited.Err() != nil { // a signal, which the runtime ignores, gets a vCPU out of KVM_RUN
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			}
		}
	}
}

// kvmIoctl makes a request of the KVM API; arg may be nil.
func kvmIoctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, fmt.Errorf("/dev/kvm: request %#x: %w", request, errno)
		}
		return int(r), nil
	}
}

// spinGuest runs the loop and returns how long it took. After the end of ctx, the
// next signal to the thread makes it give up.
func spinGuest(ctx context.Context) (time.Duration, error) {
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open /dev/kvm: %w", err)
	}
	defer unix.Close(kvm)
	vm, err := kvmIoctl(kvm, kvmCreateVM, nil)
	if err != nil {
		return 0, err
	}
	defer unix.Close(vm)
	mem, err := unix.Mmap(-1, 0, probeMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem)
	le := binary.LittleEndian
	le.PutUint64(mem[0x1000:], 0x2003) // page tables: one identity-mapped page of 2 MiB
	le.PutUint64(mem[0x2000:], 0x3003)
	le.PutUint64(mem[0x3000:], 0x83)
	copy(mem[probeCode:], "\x48\xff\xc9\x75\xfb\xf4") // dec rcx; jnz -5; hlt
	region := struct {
		slot, flags     uint32
		guest, size, at uint64
	}{size: probeMemory, at: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := kvmIoctl(vm, kvmSetUserMemory, unsafe.Pointer(&region)); err != nil {
		return 0, err
	}
	vcpu, err := kvmIoctl(vm, kvmCreateVCPU, nil)
	if err != nil {
		return 0, err
	}
	defer unix.Close(vcpu)
	size, err := kvmIoctl(kvm, kvmVCPUMmapSize, nil)
	if err != nil {
		return 0, err
	}
	run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(run)
	if err := longMode(vcpu); err != nil {
		return 0, err
	}
	start := time.Now()
	for {
		// Not by kvmIoctl, which goes on after a signal.
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vcpu), kvmRun, 0)
		if errno == 0 {
			break
		}
		if errno != unix.EINTR {
			return 0, fmt.Errorf("/dev/kvm: run a guest: %w", errno)
		}
		if ctx.Err() != nil {
			return 0, errors.New("/dev/kvm: a guest of a few instructions does not end")
		}
	}
	took := time.Since(start)
	if reason := le.Uint32(run[kvmExitReason:]); reason != kvmExitHLT {
		return 0, fmt.Errorf("/dev/kvm: a guest of a few instructions ended with exit reason %d", reason)
	}
	return took, nil
}

// longMode sets a vCPU up to run the loop in 64-bit mode.
func longMode(vcpu int) error {
	var s kvmSregs
	if _, err := kvmIoctl(vcpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return err
	}
	s.cr3, s.cr4, s.cr0, s.efer = 0x1000, 0x20, 0x80050033, 0x500
	s.cs = kvmSegment{limit: 0xffffffff, selector: 8, typ: 11, present: 1, s: 1, l: 1, g: 1}
	data := kvmSegment{limit: 0xffffffff, selector: 16, typ: 3, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.ss, s.fs, s.gs = data, data, data, data, data
	if _, err := kvmIoctl(vcpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return err
	}
	r := kvmRegs{rip: probeCode, rflags: 2, rcx: probeIterations, rsp: probeSP}
	_, err := kvmIoctl(vcpu, kvmSetRegs, unsafe.Pointer(&r))
	return err
}
