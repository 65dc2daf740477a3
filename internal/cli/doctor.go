package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"banger/api"

	"github.com/spf13/cobra"
)

// Exit status of doctor where it found errors: not one of api's, since the command
// itself went well.
const foundErrors exitError = 1

// examinePatience bounds an examination without a daemon.
const examinePatience = time.Minute

// doctorCommand examines host and installation.
func doctorCommand(d *deps) *cobra.Command {
	var fix bool
	c := local(d, "doctor", "Examine the host and the installation: what is wrong, what it means, what to do", "sudo banger doctor", cobra.NoArgs,
		func(ctx context.Context, _ []string) error {
			diagnosis, err := d.diagnose(ctx, fix)
			if err != nil {
				return err
			}
			if d.json {
				err = d.printJSON(diagnosis)
			} else {
				err = d.showDiagnosis(diagnosis)
			}
			if err != nil {
				return err
			}
			return verdict(diagnosis)
		})
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.Flags().BoolVar(&fix, "fix", false, "put what is banger's in order first: give back what belongs to no VM, set permissions right; root only")
	d.withJSON(c)
	d.withQuiet(c, "show warnings, errors and repairs only")
	return c
}

// diagnose asks the daemon, or looks itself where none answers. Only a repair starts one:
// that goes by the daemon's lock.
func (d *deps) diagnose(ctx context.Context, fix bool) (api.Diagnosis, error) {
	if fix {
		if err := d.connect(ctx); err != nil {
			return api.Diagnosis{}, err
		}
		return d.client.Repair(ctx)
	}
	var found api.Diagnosis
	err := d.answers(ctx)
	if err == nil {
		found, err = d.client.Examine(ctx)
	}
	if code := api.CodeOf(err); code == api.CodeUnavailable || code == api.CodePermissionDenied || code == api.CodeNotFound {
		why := d.explain(err)
		if found, err = d.examineAlone(ctx); err != nil {
			e := api.AsError(err)
			found.Version = d.version
			found.Findings = []api.Finding{{Group: "daemon", Check: "program", Severity: api.SeverityError, Message: e.Message,
				Meaning: "Nothing else could be looked at, and no daemon is started.", Advice: e.Hint}}
			err = nil
		}
		if code != api.CodeUnavailable { // that no daemon runs is said by the one who looks
			e := api.AsError(why)
			found.Findings = append([]api.Finding{{Group: "daemon", Check: "answers", Severity: api.SeverityWarning, Message: e.Message,
				Meaning: "What only the daemon or root can tell is not said here.", Advice: e.Hint}}, found.Findings...)
		}
	}
	if err != nil {
		return found, err
	}
	if found.Version != d.version {
		found.Findings = append(found.Findings, api.Finding{Group: "daemon", Check: "version", Severity: api.SeverityWarning,
			Message: fmt.Sprintf("banger is version %s, bangerd is version %s", d.version, found.Version),
			Meaning: "One of them may lack what the other expects.", Advice: "Install both of one version, then " + d.asRoot("system stop") + ": VMs run on."})
	}
	return found, nil
}

// examineAlone runs the daemon's program to look and not to serve.
func (d *deps) examineAlone(ctx context.Context) (api.Diagnosis, error) {
	var found api.Diagnosis
	path, err := findDaemon()
	if err != nil {
		return found, err
	}
	ctx, cancel := context.WithTimeout(ctx, examinePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--doctor")
	cmd.Env = append(os.Environ(), d.paths.Env()...)
	cmd.Dir = "/"
	cmd.Stderr = d.stderr
	text, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(text, &found)
	}
	if err != nil {
		return found, api.Errorf(api.CodeUnavailable, "examine the installation: %s --doctor: %w", path, err).WithHint("install banger and bangerd of one version")
	}
	return found, nil
}

// showDiagnosis prints the findings by group, and what was repaired first of all.
func (d *deps) showDiagnosis(found api.Diagnosis) error {
	var b strings.Builder
	for _, r := range found.Repairs {
		if r.Error != nil {
			fmt.Fprintf(&b, "not repaired: %s\n", printable(r.Error.Message))
		} else {
			fmt.Fprintf(&b, "repaired: %s\n", printable(r.Message))
		}
	}
	var groups []string
	of := map[string][]api.Finding{}
	for _, f := range found.Findings {
		if d.quiet && f.Severity == api.SeverityOK {
			continue
		}
		if of[f.Group] == nil {
			groups = append(groups, f.Group)
		}
		of[f.Group] = append(of[f.Group], f)
	}
	for _, group := range groups {
		fmt.Fprintln(&b, printable(group))
		for _, f := range of[group] {
			fmt.Fprintf(&b, "  %-8s %s\n", f.Severity, printable(f.Message))
			for _, line := range []struct{ word, text string }{{"", f.Meaning}, {"do: ", f.Advice}} {
				if line.text != "" {
					fmt.Fprintf(&b, "           %s%s\n", line.word, printable(line.text))
				}
			}
		}
	}
	warnings, errors := tally(found)
	if !d.quiet {
		fmt.Fprintf(&b, "%s, %s\n", count(errors, "error"), count(warnings, "warning"))
	}
	_, err := fmt.Fprint(d.stdout, b.String())
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func tally(found api.Diagnosis) (warnings, errors int) {
	for _, f := range found.Findings {
		switch f.Severity {
		case api.SeverityWarning:
			warnings++
		case api.SeverityError:
			errors++
		}
	}
	return warnings, errors
}

// verdict is the exit status.
func verdict(found api.Diagnosis) error {
	if _, errors := tally(found); errors > 0 {
		return foundErrors
	}
	for _, r := range found.Repairs {
		if r.Error != nil {
			return foundErrors
		}
	}
	return nil
}
