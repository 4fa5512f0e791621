//go:build unix && !linux

package harness

import "syscall"

// ownGroup makes a process group. It outlives a test binary that is killed.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
