package vm

import (
	"math/rand/v2"
	"strconv"
)

var (
	adjectives = [...]string{"bold", "brisk", "calm", "clear", "cool", "crisp", "deft", "eager", "fair", "fleet", "fresh", "glad", "keen", "kind", "light", "lucid", "merry", "neat", "nimble", "plain", "prime", "quick", "quiet", "rapid", "ready", "sharp", "smart", "snug", "spry", "stark", "sunny", "swift", "tidy", "vivid", "warm", "wise"}
	nouns      = [...]string{"ant", "bat", "bear", "bee", "crane", "crow", "deer", "dove", "duck", "eagle", "egret", "elk", "finch", "fox", "frog", "gull", "hare", "hawk", "heron", "ibex", "jay", "lark", "lynx", "mole", "moth", "newt", "otter", "owl", "seal", "shrew", "snipe", "stoat", "swan", "tern", "toad", "vole", "wasp", "wren"}
)

// randomName is the name of a VM to which nobody gave one.
func randomName() string {
	return adjectives[rand.IntN(len(adjectives))] + "-" + nouns[rand.IntN(len(nouns))] + "-" + strconv.Itoa(rand.IntN(1000))
}
