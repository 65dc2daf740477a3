package agent

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/pkg/sftp"
)

// sftpCommand is the program once more, as an sftp server on its standard input
// and output, with the privileges of u.
func sftpCommand(u user) (*exec.Cmd, error) {
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{roleSFTP}, Dir: homeOf(u),
		Env:         []string{"PATH=" + defaultPath, "HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name},
		SysProcAttr: &syscall.SysProcAttr{},
	}
	u.become(cmd)
	return cmd, nil
}

func serveSFTP() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	server, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout}, sftp.WithServerWorkingDirectory(dir))
	if err != nil {
		return err
	}
	if err := server.Serve(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
