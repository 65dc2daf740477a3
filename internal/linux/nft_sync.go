package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"banger/internal/failpoint"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

const (
	nftTries = 3   // of a batch that something else got in the way of
	nftChunk = 500 // elements in one message
)

// SyncNft makes the kernel's tables as they are wanted, in one batch: all of it or
// nothing happens. Where their layout is there, only elements and chains of devices
// that differ are touched, so that counters, and what connections the kernel knows,
// stay. It may be called again with the same tables at any time.
func SyncNft(want ...NftTable) error {
	var err error
	for range nftTries { // a chain may vanish with its device between the look and the batch
		if err = syncNft(want); err == nil {
			err = failpoint.Pass("nft", "synced")
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("set nft tables: %w", err)
	}
	return nil
}

func syncNft(want []NftTable) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return err
	}
	defer func() { go conn.CloseLasting() }() // which waits for the grace period of what went with the batch
	whole := true
	chains := make([][]string, len(want))
	for i, t := range want {
		if chains[i], err = nftChains(conn, t); err != nil {
			return err
		}
		whole = whole && slices.Contains(chains[i], t.mark())
	}
	for i, t := range want {
		if !whole {
			err = t.replace(conn)
		} else {
			err = t.update(conn, chains[i])
		}
		if err != nil {
			return err
		}
	}
	return conn.Flush()
}

// nftChains returns the names of a table's chains; none where there is no table.
func nftChains(conn *nftables.Conn, t NftTable) ([]string, error) {
	all, err := conn.ListChainsOfTableFamily(nftFamilies[t.Family])
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range all {
		if c.Table.Name == t.Name {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

// replace makes the table anew.
func (t NftTable) replace(conn *nftables.Conn) error {
	table := nftTable(t.Family, t.Name)
	there, err := conn.ListTablesOfFamily(table.Family)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(there, func(o *nftables.Table) bool { return o.Name == t.Name }) {
		conn.DelTable(table)
	}
	conn.AddTable(table)
	for _, s := range t.Sets {
		set := s.nft(table)
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
		if err := addElements(conn, set, s.elements(s.Elements)); err != nil {
			return err
		}
	}
	var chains []*nftables.Chain
	for _, c := range t.Chains {
		chains = append(chains, c.add(conn, table))
	}
	for i, c := range t.Chains {
		c.addRules(conn, chains[i])
	}
	NftChain{Name: t.mark()}.add(conn, table)
	return nil
}

// update brings elements and chains of devices up to date.
func (t NftTable) update(conn *nftables.Conn, has []string) error {
	table := nftTable(t.Family, t.Name)
	for _, s := range t.Sets {
		if s.Interval {
			continue // a part of the layout
		}
		set := s.nft(table)
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return err
		}
		var there []NftElement
		for _, e := range elements {
			there = append(there, NftElement{key: e.Key})
		}
		if err := addElements(conn, set, s.elements(missing(s.Elements, there))); err != nil {
			return err
		}
		if gone := s.elements(missing(there, s.Elements)); len(gone) > 0 {
			if err := conn.SetDeleteElements(set, gone); err != nil {
				return err
			}
		}
	}
	keep := []string{t.mark()}
	for _, c := range t.Chains {
		keep = append(keep, c.Name)
		if !slices.Contains(has, c.Name) {
			c.addRules(conn, c.add(conn, table))
		}
	}
	for _, name := range has {
		if !slices.Contains(keep, name) {
			chain := &nftables.Chain{Table: table, Name: name}
			conn.FlushChain(chain)
			conn.DelChain(chain)
		}
	}
	return nil
}

func addElements(conn *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for part := range slices.Chunk(elements, nftChunk) {
		if err := conn.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

// NftNames returns the names of the tables, of our families, that begin with prefix.
func NftNames(prefix string) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, family := range nftFamilies {
		tables, err := conn.ListTablesOfFamily(family)
		if err != nil {
			return nil, fmt.Errorf("list nft tables: %w", err)
		}
		for _, t := range tables {
			if strings.HasPrefix(t.Name, prefix) {
				names = append(names, t.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// DeleteNft deletes the tables of that name of our families, which need not exist.
func DeleteNft(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for family := range nftFamilies {
		table := conn.AddTable(nftTable(family, name))
		conn.DelTable(table)
	}
	if err = conn.Flush(); err == nil {
		err = failpoint.Pass("nft", "deleted")
	}
	if err != nil {
		return fmt.Errorf("delete nft tables %s: %w", name, err)
	}
	return nil
}
