// Banger-agent is banger's program in a guest: its init, and the server behind
// exec. See package agent.
package main

import "banger/internal/agent"

func main() { agent.Main() }
