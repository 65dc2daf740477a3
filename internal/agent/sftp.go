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
	// The process is in the user's home. The option for the server's own idea of a
	// working directory would make the targets of symbolic links absolute.
	server, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout})
	if err != nil {
		return err
	}
	if err := server.Serve(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
