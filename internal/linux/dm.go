package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of device-mapper's tables and of sysfs, in bytes.
const SectorSize = 512

// dmUdevFlags tell udev, in the upper half of an event's number, to leave a device
// alone: what is in it is a guest's, and nothing of the host's is to read it. They are
// DM_UDEV_DISABLE_{SUBSYSTEM,DISK,OTHER}_RULES_FLAG of libdevmapper.h.
const dmUdevFlags = (0x2 | 0x4 | 0x8) << 16

// dmBuffer is room for the kernel's answers, in bytes; one that does not fit is asked
// for again with more.
const dmBuffer = 16 << 10

// DeviceMapper makes block devices out of others, by the ioctls of
// /dev/mapper/control; include/uapi/linux/dm-ioctl.h.
type DeviceMapper struct{}

// DMTarget is a part of a device: Documentation/admin-guide/device-mapper.
type DMTarget struct {
	Sectors int64
	Type    string // linear, zero, snapshot
	Params  string
}

// DMDevice is a device that there is.
type DMDevice struct {
	UUID string
	Path string // of its node
}

// Supports says whether the kernel has, or can load, targets of the types; else the
// error is fs.ErrNotExist.
func (DeviceMapper) Supports(types ...string) error {
	if _, err := dmCall(unix.DM_VERSION, "", dmRequest{}); err != nil {
		return err
	}
	for _, name := range types {
		_, err := dmCall(unix.DM_GET_TARGET_VERSION, name, dmRequest{})
		if errors.Is(err, unix.ENOTTY) {
			continue // before 5.6; loading the table tells
		}
		if err != nil {
			return fmt.Errorf("find the device-mapper target %s: %w", name, fs.ErrNotExist)
		}
	}
	return nil
}

// Make makes a device of targets, one after the other. On an error there is none.
func (d DeviceMapper) Make(name, uuid string, readOnly bool, table []DMTarget) error {
	if _, err := dmCall(unix.DM_DEV_CREATE, name, dmRequest{uuid: uuid}); err != nil {
		return err
	}
	err := dmLoad(name, readOnly, table)
	if err == nil {
		_, err = dmCall(unix.DM_DEV_SUSPEND, name, dmRequest{}) // without the flag it resumes
	}
	if err != nil {
		return errors.Join(err, d.Remove(name))
	}
	return nil
}

// Reload makes a device, which may be in use, one of other targets. What was under way
// is done with the former ones, and they stay where the new ones do not work.
func (DeviceMapper) Reload(name string, readOnly bool, table []DMTarget) error {
	if err := dmLoad(name, readOnly, table); err != nil {
		return err
	}
	// Resuming suspends it first. No file system of the host's is on it that could be frozen.
	_, err := dmCall(unix.DM_DEV_SUSPEND, name, dmRequest{flags: unix.DM_SKIP_LOCKFS_FLAG})
	if err != nil {
		_, rerr := dmCall(unix.DM_DEV_SUSPEND, name, dmRequest{}) // with the former table
		return errors.Join(err, rerr)
	}
	return nil
}

// Remove removes a device, if it is there; EBUSY while somebody has it open.
func (DeviceMapper) Remove(name string) error {
	_, err := dmCall(unix.DM_DEV_REMOVE, name, dmRequest{})
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// Find looks for a device; fs.ErrNotExist where there is none of that name.
func (DeviceMapper) Find(name string) (DMDevice, error) {
	answer, err := dmCall(unix.DM_DEV_STATUS, name, dmRequest{})
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return DMDevice{}, &fs.PathError{Op: "find", Path: "device " + name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return DMDevice{}, err
	}
	return DMDevice{UUID: unix.ByteSliceToString(answer.head.Uuid[:]), Path: fmt.Sprintf("/dev/dm-%d", unix.Minor(answer.head.Dev))}, nil
}

// Status returns what the last target of a device says of itself.
func (DeviceMapper) Status(name string) (string, error) {
	answer, err := dmCall(unix.DM_TABLE_STATUS, name, dmRequest{})
	if err != nil {
		return "", err
	}
	text, at := "", uint32(0)
	for range answer.head.Target_count {
		spec, ok := cut[unix.DmTargetSpec](answer.data, at)
		if !ok {
			return "", fmt.Errorf("status of device %s: the answer is cut off", name)
		}
		text = unix.ByteSliceToString(answer.data[at+unix.SizeofDmTargetSpec:])
		at = spec.Next // from the beginning of the data
	}
	return text, nil
}

// Names returns the devices whose names begin with prefix; none where the kernel has no
// device-mapper.
func (DeviceMapper) Names(prefix string) ([]string, error) {
	answer, err := dmCall(unix.DM_LIST_DEVICES, "", dmRequest{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	// struct dm_name_list: u64 dev, u32 next, name; Go would round its size up.
	for at := uint32(0); int(at)+12 < len(answer.data); {
		entry := answer.data[at:]
		if name := unix.ByteSliceToString(entry[12:]); name != "" && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
		next := binary.NativeEndian.Uint32(entry[8:])
		if next == 0 {
			break
		}
		at += next
	}
	return names, nil
}

// dmLoad gives a device the table that its next resume brings into force.
func dmLoad(name string, readOnly bool, table []DMTarget) error {
	request := dmRequest{targets: uint32(len(table))}
	if readOnly {
		request.flags |= unix.DM_READONLY_FLAG
	}
	var data bytes.Buffer
	for start, i := int64(0), 0; i < len(table); i++ {
		t := table[i]
		params := append([]byte(t.Params), 0)
		for len(params)%8 != 0 {
			params = append(params, 0)
		}
		spec := unix.DmTargetSpec{Sector_start: uint64(start), Length: uint64(t.Sectors), Next: uint32(unix.SizeofDmTargetSpec + len(params))}
		copy(spec.Target_type[:len(spec.Target_type)-1], t.Type)
		if err := binary.Write(&data, binary.NativeEndian, spec); err != nil {
			return err
		}
		data.Write(params)
		start += t.Sectors
	}
	request.data = data.Bytes()
	_, err := dmCall(unix.DM_TABLE_LOAD, name, request)
	return err
}

type dmRequest struct {
	uuid    string
	flags   uint32
	targets uint32
	data    []byte
}

type dmAnswer struct {
	head unix.DmIoctl
	data []byte
}

// dmWords are the calls, for errors.
var dmWords = map[uint]string{
	unix.DM_VERSION: "ask", unix.DM_GET_TARGET_VERSION: "find target", unix.DM_DEV_CREATE: "create device", unix.DM_TABLE_LOAD: "load table of device",
	unix.DM_DEV_SUSPEND: "suspend or resume device", unix.DM_DEV_REMOVE: "remove device", unix.DM_DEV_STATUS: "find device",
	unix.DM_TABLE_STATUS: "status of device", unix.DM_LIST_DEVICES: "list devices",
}

// dmCall does one ioctl. Where the kernel has no device-mapper the error is
// fs.ErrNotExist.
func dmCall(call uint, name string, r dmRequest) (_ dmAnswer, err error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		err = &fs.PathError{Op: "open", Path: "/dev/mapper/control", Err: fs.ErrNotExist}
	}
	if err != nil {
		return dmAnswer{}, err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	for room := dmBuffer; ; room *= 4 {
		buf := make([]byte, max(room, unix.SizeofDmIoctl+len(r.data)))
		head := (*unix.DmIoctl)(unsafe.Pointer(unsafe.SliceData(buf)))
		*head = unix.DmIoctl{
			Version: [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}, Data_size: uint32(len(buf)), Data_start: unix.SizeofDmIoctl,
			Target_count: r.targets, Flags: r.flags,
		}
		if call == unix.DM_DEV_SUSPEND || call == unix.DM_DEV_REMOVE {
			head.Event_nr = dmUdevFlags
		}
		copy(head.Name[:len(head.Name)-1], name)
		copy(head.Uuid[:len(head.Uuid)-1], r.uuid)
		copy(buf[unix.SizeofDmIoctl:], r.data)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), uintptr(call), uintptr(unsafe.Pointer(head))); errno != 0 {
			return dmAnswer{}, &fs.PathError{Op: "device-mapper: " + dmWords[call], Path: name, Err: errno}
		}
		if head.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
			continue
		}
		start := min(head.Data_start, uint32(len(buf)))
		return dmAnswer{*head, buf[start:max(start, min(head.Data_size, uint32(len(buf))))]}, nil
	}
}

// cut reads a T at an offset of the kernel's answer, if it is there.
func cut[T any](data []byte, at uint32) (v T, ok bool) {
	if int(at) > len(data) {
		return v, false
	}
	_, err := binary.Decode(data[at:], binary.NativeEndian, &v)
	return v, err == nil
}
