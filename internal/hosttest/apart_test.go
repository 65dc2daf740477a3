package hosttest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMainApart runs the tests of testdata/apart, of which two need each other at the
// same time and a network each, and the third is told what to do.
func TestMainApart(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	program := t.TempDir() + "/apart.test"
	build := exec.Command("go", "test", "-c", "-o", program, "./testdata/apart")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const both = "--- PASS: TestOne,--- PASS: TestTwo"
	for _, test := range []struct {
		third, flags string
		fails        bool
		says, not    string // separated by commas
		times        int
	}{
		{"", "-test.v", false, both + ",--- SKIP: TestThird,\nPASS\n", "FAIL", 3},
		{"", "", false, "PASS\n", "---,FAIL", 3},
		{"fail", "-test.v", true, both + ",--- FAIL: TestThird,on purpose,\nFAIL\n", "\nPASS\n", 2},
		{"fail", "", true, "--- FAIL: TestThird,on purpose,\nFAIL\n", "PASS", 2},
		{"hang", "-test.v -test.timeout=3s -test.run=Third", true, "timed out after,\nFAIL\n", "PASS,TestOne", 0},
		{"fail", "-test.v -test.run=One|Two", false, both + ",\nPASS\n", "Third", 2},
		{"fail", "-test.v -test.run=Third|One -test.skip=TestOne", true, "on purpose,\nFAIL\n", "- PASS: TestOne,TestTwo", 1},
		{"fail", "-test.list=T", false, "TestOne\nTestTwo\nTestThird\n", "on purpose", 0},
	} {
		dir := t.TempDir()
		times := dir + "/times"
		if err := os.WriteFile(times, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, append(strings.Fields(test.flags), "-test.parallel=3")...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "APART_DIR=" + dir, "APART_THIRD=" + test.third, timesFile + "=" + times}
		out, err := cmd.CombinedOutput()
		if (err != nil) != test.fails {
			t.Errorf("%s %s: %v", test.third, test.flags, err)
		}
		for part := range strings.SplitSeq(test.says, ",") {
			if !strings.Contains("\n"+string(out), part) {
				t.Errorf("%s %s: it does not say %q:\n%s", test.third, test.flags, part, out)
			}
		}
		for part := range strings.SplitSeq(test.not, ",") {
			if strings.Contains("\n"+string(out), part) {
				t.Errorf("%s %s: it says %q:\n%s", test.third, test.flags, part, out)
			}
		}
		took, err := os.ReadFile(times)
		if got := strings.Count(string(took), " s  Test"); err != nil || got != test.times {
			t.Errorf("%s %s: times of %d tests, want %d: %v", test.third, test.flags, got, test.times, err)
		}
	}
}
