package cli

import (
	"context"
	"fmt"
	"io"
	"os/user"
	"strings"
	"time"
	"unicode/utf8"

	"banger/api"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// column is a column of a table of Ts, or a line where one T is shown.
type column[T any] struct {
	head string
	cell func(T) string
}

// kind is a sort of objects: how they are listed and shown.
type kind[T any] struct {
	none    string // said instead of an empty table
	ref     func(T) string
	columns []column[T] // of the list
	details []column[T] // of show; empty ones are left out
}

// withJSON and withQuiet give a command the flags; d.json and d.quiet hold them.
func (d *deps) withJSON(c *cobra.Command) {
	c.Flags().BoolVar(&d.json, "json", false, "print JSON")
}

func (d *deps) withQuiet(c *cobra.Command, usage string) {
	c.Flags().BoolVarP(&d.quiet, "quiet", "q", false, usage)
}

// list is the command that lists objects.
func list[T any](d *deps, k kind[T], short, example string, get func(context.Context) ([]T, error)) *cobra.Command {
	c := command(d, "list", short, example, cobra.NoArgs, func(ctx context.Context, _ []string) error {
		all, err := get(ctx)
		if err != nil {
			return err
		}
		switch {
		case d.json:
			return d.printJSON(all)
		case d.quiet:
			var text strings.Builder
			for _, v := range all {
				text.WriteString(k.ref(v) + "\n")
			}
			_, err := io.WriteString(d.stdout, text.String())
			return err
		case len(all) == 0:
			_, err := fmt.Fprintln(d.stderr, k.none)
			return err
		}
		var rows [][]string
		for _, v := range all {
			var row []string
			for _, c := range k.columns {
				row = append(row, orDash(c.cell(v)))
			}
			rows = append(rows, row)
		}
		return d.table(heads(k.columns), rows)
	})
	c.Aliases = []string{"ls"}
	d.withJSON(c)
	d.withQuiet(c, "print ids only, one a line")
	return c
}

// show is the command that shows one object.
func show[T any](d *deps, k kind[T], use, short, example string, get func(context.Context, string) (T, error)) *cobra.Command {
	c := command(d, use, short, example, cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		v, err := get(ctx, args[0])
		if err != nil {
			return err
		}
		return shown(d, k, v)
	})
	d.withJSON(c)
	d.withQuiet(c, "print the id only")
	return c
}

// shown shows v as the flags say.
func shown[T any](d *deps, k kind[T], v T) error {
	switch {
	case d.json:
		return d.printJSON(v)
	case d.quiet:
		_, err := fmt.Fprintln(d.stdout, k.ref(v))
		return err
	}
	return d.table(nil, lines(k.details, v))
}

func heads[T any](columns []column[T]) []string {
	var out []string
	for _, c := range columns {
		out = append(out, c.head)
	}
	return out
}

// lines are the details of v that are not empty.
func lines[T any](details []column[T], v T) [][]string {
	var rows [][]string
	for _, c := range details {
		if text := c.cell(v); text != "" {
			rows = append(rows, []string{c.head, text})
		}
	}
	return rows
}

// made shows what a command has made: text, or ref alone with --quiet.
func (d *deps) made(v any, ref, text string) error {
	if d.json {
		return d.printJSON(v)
	}
	if d.quiet {
		text = ref
	}
	_, err := fmt.Fprintln(d.stdout, text)
	return err
}

// done names an object to which something was done.
func (d *deps) done(name string) error {
	if d.quiet {
		return nil
	}
	_, err := fmt.Fprintln(d.stdout, name)
	return err
}

// table prints rows below a header, if there is one. What comes from elsewhere
// cannot break its lines or reach the terminal as a control sequence.
func (d *deps) table(header []string, rows [][]string) error {
	if header != nil {
		rows = append([][]string{header}, rows...)
	}
	var widths []int // of the columns, in characters
	for _, row := range rows {
		for i, cell := range row {
			row[i] = printable(cell)
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	var text strings.Builder // written at once: a thousand rows are as many cells as there would be calls of the kernel
	for _, row := range rows {
		for i, cell := range row {
			text.WriteString(cell)
			if i < len(row)-1 {
				text.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		text.WriteByte('\n')
	}
	_, err := io.WriteString(d.stdout, text.String())
	return err
}

// printable is s with every control character shown as a space.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func str(v any) string { return fmt.Sprint(v) }

func size(n int64) string { return units.BytesSize(float64(n)) }

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

// when is a point in time, exactly and as people like it.
func when(t time.Time) string { return t.Local().Format(time.DateTime) + " (" + ago(t) + ")" }

func choose(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func sizeOrNone(n int64) string { return choose(n > 0, size(n), "none") }

// owner is the name of a user, or the uid where the host knows none.
func owner(uid uint32) string {
	if u, err := user.LookupId(str(uid)); err == nil {
		return u.Username
	}
	return str(uid)
}

// shortID is the beginning of a digest or id.
func shortID(id string) string { return id[:min(19, len(id))] }

// operate runs an operation to its end and shows its progress, on a terminal.
func (d *deps) operate(ctx context.Context, op api.Operation, err error) (api.Operation, error) {
	return d.progressOf(ctx, op, err, false)
}

// operateLong is operate for what is long by nature: elsewhere than on a terminal its
// progress is plain lines.
func (d *deps) operateLong(ctx context.Context, op api.Operation, err error) (api.Operation, error) {
	return d.progressOf(ctx, op, err, true)
}

func (d *deps) progressOf(ctx context.Context, op api.Operation, err error, long bool) (api.Operation, error) {
	if err != nil {
		return api.Operation{}, err
	}
	line := newProgress(d, long)
	defer line.clear()
	return d.wait(ctx, op, line.report)
}
